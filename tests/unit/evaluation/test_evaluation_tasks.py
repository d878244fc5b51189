"""Items are read as written, wherever they lie, and every bad one is refused by task, file and row."""

from __future__ import annotations

import base64
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from pydantic import ValidationError
from tiny import picture

from lingu_ray.config import EvaluationConfig, TaskConfig
from lingu_ray.config.evaluation import FIELDS, KNOWN_FIELDS, RESERVED_FIELDS, SCORED_TYPES
from lingu_ray.errors import UserError
from lingu_ray.evaluation.engines.engine import GenerateRequest, ScoreRequest
from lingu_ray.evaluation.tasks import task_types
from lingu_ray.evaluation.tasks.load import load_task, load_tasks
from lingu_ray.evaluation.tasks.task import Asked, Scored
from lingu_ray.evaluation.tasks.task_types import ASKED, SCORED

VISION = ("exact_match", "vqa_accuracy", "anls", "relaxed_accuracy", "cider", "rouge_l", "mme")


def config(path: Path, type: str, **more: Any) -> TaskConfig:
    """A task of the type on the file; of images where the type may be."""
    kind = "vision" if type in VISION else "language"
    return TaskConfig.model_validate({"name": "t", "kind": kind, "type": type, "path": str(path), **more})


def write(path: Path, *records: object) -> Path:
    """A JSONL file of the records (a string stands as it is)."""
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with img/1.png, img/2.png and a broken img/broken.png."""
    (tmp_path / "img").mkdir()
    for seed in (1, 2):
        (tmp_path / "img" / f"{seed}.png").write_bytes(picture(seed))
    (tmp_path / "img" / "broken.png").write_bytes(picture(1)[:60])
    return tmp_path


def questions(task: TaskConfig) -> list[GenerateRequest]:
    """What the items ask."""
    return [item.request(task) for item in load_task(task).items if isinstance(item, Asked)]


def test_both_forms_of_multiple_choice(tmp_path: Path) -> None:
    """`query, choices` varies the continuation, `context_options` the context; lengths are in characters."""
    path = write(
        tmp_path / "a.jsonl",
        {"query": "Q", "choices": ["é", "no"], "gold": 1},
        "",
        {"context_options": ["A so B", "A so C"], "continuation": "won.", "gold": 0},
    )
    assert load_task(config(path, "multiple_choice", delimiter="\nAnswer: ")).items == (
        Scored(
            "1",
            (ScoreRequest("Q", "\nAnswer: é"), ScoreRequest("Q", "\nAnswer: no")),
            {"gold": 1, "lengths": [1, 2]},
            ("Q\nAnswer: no",),
        ),
        Scored(
            "3",
            (ScoreRequest("A so B", "\nAnswer: won."), ScoreRequest("A so C", "\nAnswer: won.")),
            {"gold": 0, "lengths": [4, 4]},
            ("A so B\nAnswer: won.",),
        ),
    )


def test_class_labels_count_choices_and_are_words_in_a_format(tmp_path: Path) -> None:
    """`gold: label` is the number of the right choice; a corpus format gives the label's name, as the corpus does."""
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "completion": datasets.ClassLabel(names=["no", "yes"])}
    )
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict({"prompt": ["Is it?"], "completion": [1]}, features=features).to_parquet(path)
    fields = {"query": "prompt", "choices": "{{['no', 'yes']}}", "gold": "completion"}
    [item] = load_task(config(path, "multiple_choice", fields=fields)).items
    assert isinstance(item, Scored) and item.reference["gold"] == 1
    [item] = load_task(config(path, "exact_match", kind="language", format="prompt_completion")).items
    assert isinstance(item, Asked) and "yes" in str(item.reference)


def test_passages_and_last_words(tmp_path: Path) -> None:
    """A text is scored from its first token, a continuation after its context."""
    path = write(tmp_path / "a.jsonl", {"text": "All of it."}, {"context": "He took the", "continuation": "signs"})
    whole, continued = load_task(config(path, "perplexity")).items
    assert whole == Scored("1", (ScoreRequest("", "All of it."),), {}, ("All of it.",))
    assert continued == Scored("2", (ScoreRequest("He took the", " signs"),), {}, ("He took the signs",))
    path = write(tmp_path / "b.jsonl", {"context": "He took the", "continuation": "signs"})
    assert load_task(config(path, "last_word")).items == (replace(continued, name="1"),)


def test_questions_find_their_images_from_the_file(images: Path) -> None:
    """Image paths start at the JSONL file's folder; one or several; answers likewise."""
    path = write(
        images / "a.jsonl",
        {"question": "Which?", "answer": "one", "image": "img/1.png"},
        {"question": "<image> or <image>?", "answer": ["two", "2"], "image": ["img/1.png", "img/2.png"]},
    )
    task = config(path, "exact_match", max_new_tokens=5, stop=["\n"])
    assert questions(task) == [
        GenerateRequest("Which?", (picture(1),), 5, ("\n",)),
        GenerateRequest("<image> or <image>?", (picture(1), picture(2)), 5, ("\n",)),
    ]
    assert [item.reference for item in load_task(task).items] == [{"answers": ["one"]}, {"answers": ["two", "2"]}]


def test_questions_of_text_alone(images: Path) -> None:
    """A language task may be answered too, without images: the teacher has no eyes."""
    path = write(images / "a.jsonl", {"question": "2 + 2?", "answer": ["4", "four"]})
    task = config(path, "exact_match", kind="language")
    assert questions(task) == [GenerateRequest("2 + 2?", (), 16)]
    path = write(images / "b.jsonl", {"question": "Which?", "answer": "one", "image": "img/1.png"})
    with pytest.raises(UserError, match="in a language task"):
        load_task(config(path, "exact_match", kind="language"))


def test_lettered_options(images: Path) -> None:
    """Multiple choice about an image asks for the letter, in the words of lmms-eval, unless the question does."""
    record = {"question": "What is it?", "choices": ["a cat", "a dog"], "gold": 1, "image": "img/1.png"}
    task = config(write(images / "a.jsonl", record), "multiple_choice", kind="vision")
    (asked,) = questions(task)
    assert asked.prompt == (
        "What is it?\nA. a cat\nB. a dog\nAnswer with the option's letter from the given choices directly."
    )
    assert load_task(task).items[0].reference == {"choices": ["a cat", "a dog"], "gold": 1}
    record = {"question": "What is it? A: cat, B: dog", "choices": ["A", "B"], "gold": 1, "image": "img/1.png"}
    (asked,) = questions(config(write(images / "b.jsonl", record), "multiple_choice", kind="vision"))
    assert asked.prompt == "What is it? A: cat, B: dog"


def test_yes_or_no_questions_in_groups(images: Path) -> None:
    """MME's references are the answer, the category, and the image that two questions share."""
    records = [
        {"question": f"Is it {color}?", "gold": gold, "category": "color", "group": "7", "image": "img/1.png"}
        for color, gold in (("red", "Yes"), ("blue", "No"))
    ]
    items = load_task(config(write(images / "a.jsonl", *records), "mme")).items
    assert [item.reference for item in items] == [
        {"gold": gold, "category": "color", "group": "7"} for gold in ("yes", "no")
    ]


def test_answers_that_are_cut_off_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where no answer that is accepted fits into as many tokens as it has words, no model can be right."""
    answers = ("a b c", ["a b c", "a b"], "a b")
    path = write(tmp_path / "a.jsonl", *({"question": "Q", "answer": answer} for answer in answers))
    for tokens, told in ((2, 1), (1, 3), (3, 0)):
        caplog.clear()
        load_tasks(EvaluationConfig(tasks=(config(path, "exact_match", kind="language", max_new_tokens=tokens),)))
        said = f"t: of {told} of 3 items every right answer has more words than max_new_tokens={tokens} has tokens"
        assert (said in caplog.text) == bool(told) == bool(caplog.records)


@pytest.mark.parametrize(
    ("groups", "limit", "said"),
    [("7", None, "has 1"), ("777", None, "has 3"), ("77889", None, "'9' .* has 1"), ("7788", 3, "unless limit 3 cuts")],
)
def test_an_image_has_two_questions(images: Path, groups: str, limit: int | None, said: str) -> None:
    """MME gives 100 more for both: with one alone an image would have them for a single answer."""
    record = {"question": "Is it red?", "gold": "Yes", "category": "color", "image": "img/1.png"}
    path = write(images / "a.jsonl", *({**record, "group": group} for group in groups))
    with pytest.raises(UserError, match=f"a.jsonl: mme scores an image by its two questions, .*{said}"):
        load_task(config(path, "mme", limit=limit))


def test_people_who_said_nothing_count(images: Path) -> None:
    """The VQA score is a mean over people, so an empty answer is one, and so is a null."""
    record = {"question": "Q", "answer": ["red", "", None, "red"], "image": "img/1.png"}
    (item,) = load_task(config(write(images / "a.jsonl", record), "vqa_accuracy")).items
    assert item.reference == {"answers": ["red", "", "", "red"]}


@pytest.mark.parametrize("type", sorted({*SCORED, *ASKED, "exact_match"}))
def test_no_field_takes_the_place_of_a_reference(type: str) -> None:
    """What a metric reads beside the fields that types ask for is reserved: a column of that name is refused."""
    everything = {
        **{"query": "Q", "choices": ["a", "b"], "gold": 0, "context": "c", "continuation": "d", "question": "Q"},
        **{"answer": ["a", "b", "c", "d"], "category": "c", "group": "g"},
    }
    references = []
    if type in SCORED:
        references.append(SCORED[type](config(Path("x"), type), everything)[1])
    if type not in SCORED or type in ASKED:
        fields = everything | ({"gold": "yes"} if type == "mme" else {})
        references.append(ASKED.get(type, task_types._answered)(fields)[1])
    assert all(name in RESERVED_FIELDS or name in KNOWN_FIELDS for reference in references for name in reference)


@pytest.mark.parametrize("layout", ["parquet", "saved", "splits", "hub"])
def test_images_in_cells_stay_on_disk(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of `datasets` are checked, and read again when they are asked for, in any order and another process."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"image": {"bytes": picture(i), "path": None}, "q": f"Which {i}?", "labels": [str(i)]} for i in range(5)]
    data = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    path, split = tmp_path / "data", "test"
    if layout == "parquet":
        path, split = tmp_path / "data.parquet", None
        data.to_parquet(path, batch_size=2)
    elif layout == "saved":
        data.save_to_disk(path, num_shards=2)
    elif layout == "splits":
        datasets.DatasetDict({"train": data.select([0]), "test": data}).save_to_disk(path)
    else:
        path.mkdir()
        data.select([0]).to_parquet(path / "train-00000-of-00001.parquet")
        data.to_parquet(path / "test-00000-of-00001.parquet")
    fields = {"question": "{{q}} Answer in a word.", "answer": "labels", "image": "image", "length": "{{q | length}}"}
    task = load_task(config(path, "anls", split=split, fields=fields))
    assert len({item.name for item in task.items}) == 5
    for index in (4, 0, 3, 1, 2):
        pickled = pickle.dumps(task.items[index])
        assert picture(index) not in pickled
        item = pickle.loads(pickled)
        assert item.request(task.config) == GenerateRequest(f"Which {index}? Answer in a word.", (picture(index),), 16)
        assert item.reference == {"answers": [str(index)], "length": 8}


def test_a_folder_laid_out_as_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`subset` and `split` choose among the files that the folder's card lists; what is not there is named."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = {
        "id": ["a", "b"],
        "question": ["What?", "Who?"],
        "choices": [{"text": ["x", "y"], "label": ["1", "2"]}, {"text": ["u", "v", "w"], "label": ["A", "B", "C"]}],
        "answerKey": ["2", "A"],
    }
    for part in ("ARC-Easy/test", "ARC-Easy/train", "ARC-Challenge/test"):
        file = tmp_path / "ai2_arc" / f"{part}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows | {"question": [f"{part}: {q}" for q in rows["question"]]}).to_parquet(file)
    (tmp_path / "ai2_arc" / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: ARC-Easy\n  data_files:\n"
        "  - {split: train, path: ARC-Easy/train-*}\n  - {split: test, path: ARC-Easy/test-*}\n"
        "- config_name: ARC-Challenge\n  data_files:\n  - {split: test, path: ARC-Challenge/test-*}\n---\n"
    )
    entries = [{"name": name, "path": str(tmp_path / "ai2_arc")} for name in ("arc_easy", "arc_challenge")]
    easy, challenge = EvaluationConfig.model_validate({"tasks": entries}).tasks
    assert load_task(easy).items == (
        Scored(
            "1",
            tuple(ScoreRequest("Question: ARC-Easy/test: What?\nAnswer:", f" {choice}") for choice in "xy"),
            {"gold": 1, "lengths": [1, 1]},
            ("Question: ARC-Easy/test: What?\nAnswer: y",),
        ),
        Scored(
            "2",
            tuple(ScoreRequest("Question: ARC-Easy/test: Who?\nAnswer:", f" {choice}") for choice in "uvw"),
            {"gold": 0, "lengths": [1, 1, 1]},
            ("Question: ARC-Easy/test: Who?\nAnswer: u",),
        ),
    )
    first = load_task(challenge).items[0]
    assert isinstance(first, Scored) and first.requests[0].context == "Question: ARC-Challenge/test: What?\nAnswer:"
    with pytest.raises(UserError, match=r"evaluation.tasks: arc_easy: .*Unknown split \"dev\""):
        load_task(easy.model_copy(update={"split": "dev"}))


def test_the_cure_for_a_number_works(tmp_path: Path) -> None:
    """The error about an answer that is a number gives the template that makes a text of it."""
    path = write(tmp_path / "a.jsonl", {"question": "2 + 2?", "number": 4})
    fields = {"question": "question", "answer": "{{number}}"}
    with pytest.raises(UserError, match=r"`answer` .* found 4; .* \(of a number '\{\{number \| string\}\}'\)"):
        load_task(config(path, "exact_match", kind="language", fields=fields))
    cured = config(path, "exact_match", kind="language", fields=fields | {"answer": "{{number | string}}"})
    assert [item.reference for item in load_task(cured).items] == [{"answers": ["4"]}]


def test_the_cure_for_an_index_of_a_table_works(tmp_path: Path) -> None:
    """CSV has numbers as text: the error about `gold` gives the template that makes an index of it."""
    path = tmp_path / "a.csv"
    path.write_text("query,a,b,gold\nThe sky is,blue,green,1\n")
    fields = {"query": "query", "choices": "{{[a, b]}}", "gold": "gold"}
    with pytest.raises(
        UserError, match=r"`gold` .* found '1' of 2; .* of a number as CSV has it \"\{\{gold \| int\}\}\""
    ):
        load_task(config(path, "multiple_choice", fields=fields))
    [item] = load_task(config(path, "multiple_choice", fields=fields | {"gold": "{{gold | int}}"})).items
    assert isinstance(item, Scored) and item.reference["gold"] == 1


@pytest.mark.parametrize("format", [None, "prompt_completion"])
def test_a_split_of_a_folder_is_read_in_place(format: str | None, images: Path) -> None:
    """As a source's: records name their images from where they lie, by fields or in a format of the corpus."""
    (images / "test").mkdir()
    names = ("question", "answer") if format is None else ("prompt", "completion")
    for file, image, answer in (("train.jsonl", "img/1.png", "one"), ("test/a.jsonl", "../img/2.png", "two")):
        write(images / file, dict(zip(names, ("Which?", answer), strict=True)) | {"image": image})
    task = config(images, "exact_match", split="test", format=format)
    assert [question.images for question in questions(task)] == [(picture(2),)]
    assert [item.reference for item in load_task(task).items] == [{"answers": ["two"]}]


def test_pictures_of_a_split_are_asked_by_their_folders(tmp_path: Path) -> None:
    """`format: image_folder` with `split` is that of the corpus."""
    for seed, folder in enumerate(("train/cat", "test/cat", "test/a_dog")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.png").write_bytes(picture(seed))
    task = config(tmp_path, "exact_match", split="test", format="image_folder")
    assert [item.reference for item in load_task(task).items] == [{"answers": ["a dog"]}, {"answers": ["cat"]}]


@pytest.mark.parametrize("saved", [True, False])
def test_a_subset_that_chooses_nothing_is_refused(saved: bool, tmp_path: Path) -> None:
    """Of a folder without `split`, or one that `datasets` saved, all subsets would be read as one."""
    rows = [{"text": f"{name} {i}"} for name in ("anatomy", "virology") for i in range(2)]
    if saved:
        datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)}).save_to_disk(tmp_path / "mmlu")
    else:
        for name in ("anatomy", "virology"):
            (tmp_path / "mmlu" / name).mkdir(parents=True)
            write(tmp_path / "mmlu" / name / "test.jsonl", *(row for row in rows if name in row["text"]))
    whole = config(tmp_path / "mmlu", "perplexity", split="test" if saved else None)
    assert len(load_task(whole).items) == 4
    with pytest.raises(
        UserError, match=r"evaluation.tasks: t: `subset` chooses within .* let `path` name what is meant"
    ):
        load_task(whole.model_copy(update={"subset": "anatomy"}))


def test_a_split_of_a_file_is_said_to_choose_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All of a file is read: who sets `split` or `subset`, or has them of the catalog, is told."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "one two"}\n')
    load_task(config(file, "perplexity"))
    assert not caplog.messages
    load_task(config(file, "perplexity", split="test", subset="x"))
    assert caplog.messages == [
        f"evaluation.tasks: t: {file} has no splits: all of it is read, whatever `subset` and `split` says"
    ]
    with pytest.raises(UserError, match=r"t: `revision` is for datasets of the hub, and .*rows.jsonl is not one"):
        load_task(config(file, "perplexity", revision="v1"))


def test_code_of_a_dataset_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset that is a script is refused."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "data.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match=r"evaluation.tasks: t: .*scripts are no longer supported"):
        load_task(config(tmp_path / "data", "perplexity", split="test"))
    assert not (tmp_path / "ran").exists()


def test_rows_of_the_corpus_formats(images: Path) -> None:
    """The last user turn is asked about all images; what the assistant says to it is the answer."""
    turns = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": "Which color?"},
        {"from": "gpt", "value": "Red."},
    ]
    path = write(images / "a.jsonl", {"conversations": turns, "image": "img/1.png"})
    task = config(path, "exact_match", format="llava")
    assert questions(task) == [GenerateRequest("<image>Which color?", (picture(1),), 16)]
    assert load_task(task).items[0].reference == {"answers": ["Red."]}

    task = config(images / "img" / "[12].png", "exact_match", format="image_folder")
    assert questions(task) == [GenerateRequest("<image>What is in the picture?", (picture(i),), 16) for i in (1, 2)]
    assert load_task(task).items[0].reference == {"answers": ["img"]}

    with pytest.raises(UserError, match=rf"t: {path}:1: no field 'texts'"):
        load_task(config(path, "exact_match", format="cauldron"))


def test_rows_are_chosen_by_where(tmp_path: Path) -> None:
    """`where` takes rows, which keep their numbers; `limit` counts those taken."""
    path = write(tmp_path / "a.jsonl", *({"text": f"text {i}", "even": i % 2 == 0} for i in range(8)))
    assert [item.name for item in load_task(config(path, "perplexity", where="even", limit=3)).items] == ["1", "3", "5"]
    assert len(load_task(config(path, "perplexity", where="{{not even}}")).items) == 4
    with pytest.raises(UserError, match=r"holds no items where \{\{text == 'no'\}\}"):
        load_task(config(path, "perplexity", where="{{text == 'no'}}"))
    with pytest.raises(UserError, match=rf"{path}:1: `where` must give true or false, found 'text 0'"):
        load_task(config(path, "perplexity", where="text"))


def test_limit_takes_the_first_items(tmp_path: Path) -> None:
    """`limit` is exact, and what comes after is not looked at."""
    path = write(tmp_path / "a.jsonl", *({"text": f"text {i}"} for i in range(3)), "{broken")
    assert [item.name for item in load_task(config(path, "perplexity", limit=3)).items] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("type", "record", "message"),
    [
        ("perplexity", "{not json", "Expecting property name"),
        ("perplexity", [1], "must be an object"),
        ("perplexity", {"text": " "}, "`text`"),
        ("perplexity", {"context": "a"}, "`continuation` is missing"),
        (
            "last_word",
            {"context": "a", "continuation": 3},
            "`continuation` .* found 3; a template under `fields` makes",
        ),
        ("multiple_choice", {"query": "Q", "gold": 0}, "neither"),
        ("multiple_choice", {"query": "Q", "choices": ["a", "b"], "gold": 2}, "`gold`"),
        ("multiple_choice", {"query": "Q", "choices": ["a", "b"], "gold": True}, "`gold`"),
        ("multiple_choice", {"query": "Q", "choices": ["a"], "gold": 0}, "two or more"),
        ("multiple_choice", {"query": "Q", "choices": ["a", "b"], "gold": "B"}, r"from 0, .*\{\{'ABCD'.index\(gold\)"),
        ("multiple_choice", {"query": "Q", "choices": ["a", ""], "gold": 0}, "`choices`"),
        ("exact_match", {"question": "Q", "answer": "a"}, "`image` is missing"),
        ("exact_match", {"question": "Q", "answer": "a", "image": "none.png"}, "none.png"),
        ("exact_match", {"question": "Q", "answer": "a", "image": "img/broken.png"}, "truncated|broken"),
        ("exact_match", {"question": "Q", "image": "img/1.png"}, "`answer`"),
        ("exact_match", {"question": "<image><image>", "answer": "a", "image": "img/1.png"}, "2 <image> for 1"),
        ("vqa_accuracy", {"question": "Q", "answer": "red", "image": "img/1.png"}, "several people, 4 at least"),
        ("vqa_accuracy", {"question": "Q", "answer": [1, 2, 3, 4], "image": "img/1.png"}, "several people"),
        ("exact_match", {"question": "Q", "answer": ["a", "b\ud83d"], "image": "img/1.png"}, "half a character at 1"),
        ("perplexity", {"text": "\ude00"}, "half a character at 0"),
        ("mme", {"question": "Q", "gold": "maybe", "image": "img/1.png"}, "yes or no"),
        ("mme", {"question": "Q", "gold": "no", "image": "img/1.png"}, "`category` is missing"),
        (
            "multiple_choice",
            {"query": "Q", "choices": ["a", "b"], "gold": 0, "context_options": ["c", "d"], "continuation": "e"},
            "both `query, choices` and `context_options, continuation`, each an item: take one out of the row",
        ),
        ("perplexity", {"text": "a", "context": "b", "continuation": "c"}, "both `text` and `context, continuation`"),
    ],
)
def test_bad_items_are_refused_by_file_and_line(images: Path, type: str, record: object, message: str) -> None:
    """One bad item stops the evaluation before a model is loaded: no score is made from fewer items than it says."""
    path = write(images / "a.jsonl", "", record)
    with pytest.raises(UserError, match=message) as error:
        load_task(config(path, type))
    assert str(error.value).startswith(f"evaluation.tasks: t: {path}:2: ")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("{{missing}}", "`text`: '{{missing}}' does not fit the row: UndefinedError: 'missing' is undefined"),
        ("missing", "`text`: 'missing' does not fit the row: LookupError: no column 'missing'; there are: a, b"),
        ("{{a.index('z')}}", "`text`: .* does not fit the row: ValueError"),
        ("{{b}}", "`text` must be a text that is not empty, found 3"),
    ],
)
def test_fields_that_do_not_fit_are_named(tmp_path: Path, field: str, message: str) -> None:
    """The error names task, file, row and field."""
    path = write(tmp_path / "a.jsonl", {"a": "x", "b": 3})
    with pytest.raises(UserError, match=message) as error:
        load_task(config(path, "perplexity", fields={"text": field}))
    assert str(error.value).startswith(f"evaluation.tasks: t: {path}:1: ")


@pytest.mark.parametrize("count", ["2", 0, None, True, 1.5])
def test_words_and_bytes_are_counts(tmp_path: Path, count: object) -> None:
    """A perplexity is divided by them, when everything is measured."""
    path = write(tmp_path / "a.jsonl", {"text": "a b", "w": 2}, {"text": "c d", "w": count})
    with pytest.raises(UserError, match=r"a\.jsonl:2: `words` must be how many there are, a whole number above 0"):
        load_task(config(path, "perplexity", fields={"text": "text", "words": "w"}))


@pytest.mark.parametrize("value", ["one", {}, 10**30])
def test_fields_of_ones_own_are_columns(tmp_path: Path, value: object) -> None:
    """What cannot be written with the answers is told before there are any."""
    rows = [{"text": "a", "kept": 1 if value == "one" else value}, {"text": "b", "kept": value}]
    path = write(tmp_path / "a.jsonl", *rows)
    with pytest.raises(UserError, match=r"a\.jsonl: `fields\.kept`: its values are no column"):
        load_task(config(path, "perplexity", fields={"text": "text", "kept": "kept"}))


def table(path: Path, *records: dict[str, Any]) -> Path:
    """The records as pandas writes them, whose lists become text."""
    pd.DataFrame(list(records)).to_csv(path, sep="\t", index=False)
    return path


def test_lists_in_tables(images: Path) -> None:
    """Pictures and people's answers are read from a table as they are; options and right answers by a template."""
    encoded = [base64.b64encode((images / "img" / f"{seed}.png").read_bytes()).decode() for seed in (1, 2)]
    records = [
        {"question": "Which?", "choices": ["it's", 'a "b"'], "gold": 1, "answer": ["x", "it's x"], "image": encoded},
        {"question": "Who?", "choices": ["c", "d"], "gold": 0, "answer": ["y"], "image": encoded[:1]},
    ]
    file, lines = table(images / "a.tsv", *records), write(images / "a.jsonl", *records)
    fields = {"question": "question", "image": "image"}
    answers = fields | {"answer": "{{answer | as_list}}"}
    options = fields | {"choices": "{{choices | as_list}}", "gold": "{{gold | int}}"}
    for type, read in (("multiple_choice", options), ("exact_match", answers)):
        tasks = [config(file, type, kind="vision", fields=read), config(lines, type, kind="vision")]
        of_table, of_lines = ([i for i in load_task(task).items if isinstance(i, Asked)] for task in tasks)
        alike = [[replace(item, name="", images=()) for item in items] for items in (of_table, of_lines)]
        assert alike[0] == alike[1]
        assert questions(tasks[0]) == questions(tasks[1]) and len(of_table[0].images) == 2
    with pytest.raises(UserError, match=r"`choices` is the text of a list, .*{{choices \| as_list}}"):
        load_task(config(file, "multiple_choice", kind="vision"))
    people = [{"question": "?", "answer": ["a", "b"] * 5, "image": "img/1.png"}]
    (item,) = load_task(config(table(images / "p.tsv", *people), "vqa_accuracy")).items
    assert item.reference["answers"] == ["a", "b"] * 5


@pytest.mark.parametrize(("other", "told"), [("a", False), ("['a' 'b']", False), ("[1, 2]", True)])
def test_answers_that_look_like_lists(tmp_path: Path, caplog: pytest.LogCaptureFixture, other: str, told: bool) -> None:
    """They are right as they are, as what a program prints is; where all do a warning says what else may be meant."""
    records = [{"question": "?", "answer": answer} for answer in ("['a', 'b']", other)]
    settings = config(table(tmp_path / "a.tsv", *records), "exact_match", kind="language")
    (task,) = load_tasks(EvaluationConfig(tasks=(settings,)))
    assert [item.reference["answers"] for item in task.items] == [["['a', 'b']"], [other]]
    assert ("{{answer | as_list}}" in caplog.text) == told


def test_no_data_no_items_too_few_items(tmp_path: Path) -> None:
    """Each is an error that names the task and the file."""
    with pytest.raises(UserError, match=r"t: no such file or folder: .*gone\.jsonl"):
        load_task(config(tmp_path / "gone.jsonl", "perplexity"))
    with pytest.raises(UserError, match=r"t: no such file or folder: /.*/eval/gone; correct .* set `split`"):
        load_task(config(Path("eval/gone"), "perplexity"))
    with pytest.raises(UserError, match="holds no items"):
        load_task(config(write(tmp_path / "empty.jsonl"), "perplexity"))
    with pytest.raises(UserError, match=r"limit is 2, but .* holds 1"):
        load_task(config(write(tmp_path / "one.jsonl", {"text": "x"}), "perplexity", limit=2))
    datasets.DatasetDict({"test": datasets.Dataset.from_dict({"text": ["x"]})}).save_to_disk(tmp_path / "splits")
    with pytest.raises(UserError, match="has splits: set `split`"):
        load_task(config(tmp_path / "splits", "perplexity"))
    for name in ("data/train-0.jsonl", "data/test-0.jsonl", "pictures/train/a/1.png", "pictures/val/a/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, {"text": name})
    with pytest.raises(UserError, match=r"t: .*data has splits: set `split`"):
        load_task(config(tmp_path / "data", "perplexity"))
    with pytest.raises(UserError, match=r"t: .*pictures has splits: set `split`"):
        load_task(config(tmp_path / "pictures", "exact_match", kind="vision", format="image_folder"))
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"evaluation.tasks: t: .*bad\.parquet cannot be read"):
        load_task(config(tmp_path / "bad.parquet", "perplexity"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "vision", "type": "perplexity"}, "does not go with"),
        ({"kind": "vision", "type": "lm_eval"}, "does not go with"),
        ({"kind": "language", "type": "anls"}, "does not go with"),
        ({"type": "perplexity", "format": "llava"}, "format 'llava' gives a question"),
        ({"type": "exact_match", "format": "llava", "fields": {"question": "q"}}, "columns are named by"),
        ({"type": "perplexity", "fields": {"text": "{{a"}}, "malformed"),
        ({"type": "perplexity", "where": "{{a | shout}}"}, "malformed"),
        ({"type": "perplexity", "fields": {"text": "a", "tokens": "b"}}, "fields.tokens: the name is taken"),
        ({"type": "exact_match", "fields": {"answer": "a", "answers": "b"}}, "fields.answers: the name is taken"),
        ({"type": "lm_eval", "split": "test"}, "brings its own data"),
        ({"type": "exact_match", "stop": [""]}, "at least 1 character"),  # every answer would be empty
    ],
)
def test_settings_that_do_not_fit_together(settings: dict[str, Any], message: str) -> None:
    """Refused with the settings, before anything is read."""
    with pytest.raises(ValidationError, match=message):
        TaskConfig.model_validate({"name": "t", "kind": "language", "path": "x"} | settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"type": "multiple_choice", "max_new_tokens": 5}, "max_new_tokens: type 'multiple_choice' of kind 'lang"),
        ({"type": "perplexity", "stop": ["."]}, "stop: .*: it scores texts; leave it out"),
        ({"type": "exact_match", "delimiter": ""}, "delimiter: .*: it has answers generated; leave it out"),
        ({"type": "multiple_choice", "kind": "vision", "delimiter": ""}, "delimiter: .* does not read it"),
        ({"type": "lm_eval", "max_new_tokens": 5}, "max_new_tokens: .* brings its own; leave it out"),
        ({"type": "lm_eval", "delimiter": ""}, "delimiter: .* brings its own"),
        ({"name": "gsm8k", "like": "lm_eval/gsm8k", "stop": ["."]}, "stop: .* brings its own"),
        ({"type": "multiple_choice", "fields": {"query": "q", "context": "c"}}, "fields.context: .* but for query"),
        (
            {"type": "last_word", "fields": {"context": "c", "text": "t"}},
            "fields.text: .* context, continuation, cluster:",
        ),
        ({"type": "exact_match", "fields": {"question": "q", "choices": "c"}}, "fields.choices: .* question, answer"),
        ({"type": "anls", "kind": "vision", "fields": {"gold": "c"}}, "fields.gold: .* question, answer, image"),
    ],
)
def test_what_a_type_does_not_read_is_refused(settings: dict[str, Any], message: str) -> None:
    """Ignored, it would measure something else than its task says."""
    with pytest.raises(ValidationError, match=message):
        EvaluationConfig.model_validate({"tasks": [{"name": "t", "kind": "language", "path": "x"} | settings]})


def test_types_score_texts_and_ask_for_fields_as_their_settings_are_checked() -> None:
    """The settings know without the code that reads the fields, and say the same."""
    assert set(SCORED_TYPES) == set(SCORED)
    assert all(type in SCORED or type in ASKED or type == "exact_match" for _, type in FIELDS)


def test_two_tasks_of_one_name_are_refused() -> None:
    """They would write the same files."""
    task = TaskConfig(name="t", kind="language", type="perplexity", path="x")
    with pytest.raises(ValidationError, match="found twice: t"):
        EvaluationConfig(tasks=(task, task))


@pytest.mark.parametrize(
    ("file", "type", "items"),
    [
        ("arc_easy", "multiple_choice", 2376),
        ("winogrande", "multiple_choice", 1267),
        ("lambada_openai", "last_word", 5153),
    ],
)
def test_real_items(file: str, type: str, items: int) -> None:
    """Items that are kept beside a project in the plain forms are all read, where LINGU_RAY_EVAL_DATA names them."""
    folder = os.environ.get("LINGU_RAY_EVAL_DATA")
    if folder is None:
        pytest.skip("LINGU_RAY_EVAL_DATA does not name a folder of items")
    assert len(load_task(config(Path(folder) / f"{file}.jsonl", type)).items) == items
