"""Against lm-evaluation-harness itself: the catalog asks what it asks, our levels are its, and its tasks run here."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from tiny import tiny_teacher

from lingu_ray.config import EvaluationConfig, TaskConfig
from lingu_ray.config.task_catalog import catalog
from lingu_ray.corpus.row import Row
from lingu_ray.errors import UserError
from lingu_ray.evaluation.contamination.items import TaskMarks
from lingu_ray.evaluation.contamination.rows import look_in_rows
from lingu_ray.evaluation.engines.engine import GenerateRequest
from lingu_ray.evaluation.engines.transformers_engine import TransformersEngine
from lingu_ray.evaluation.item_files import Stamp, items_path, write_items
from lingu_ray.evaluation.metrics.metric import Columns, Scores
from lingu_ray.evaluation.recovery import summarize
from lingu_ray.evaluation.tasks import harness
from lingu_ray.evaluation.tasks.harness import harness_items, main_metric
from lingu_ray.evaluation.tasks.judging import METRICS
from lingu_ray.evaluation.tasks.load import load_task
from lingu_ray.evaluation.tasks.task import Asked, Scored, Task

pytestmark = pytest.mark.slow  # runs the harness

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness (the extra lm-eval) is not installed")

ARC = [
    {"question": "Which?", "choices": {"text": ["sand", "é é"], "label": ["1", "2"]}, "answerKey": "2"},
    {"question": "Where?", "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]}, "answerKey": "A"},
]
COPA = {"premise": " The man slept. ", "choice1": "He was tired.", "choice2": "It rained.", "idx": 0}
WIKITEXT = (
    " \n = Robert <unk> = \n \n Robert <unk> is an English film , television and theatre actor . He had a guest "
    "@-@ starring role on the television series The Bill in 2000 . This was followed by a starring role in the play ' "
    "Herons ' , which cost $ 10 @,@ 000 @.@ 50 ( or so ) . \n = = Career = = \n \n = = = 2000 – 2005 = = = \n \n It "
    "was at 3 : 40 ; the dogs ' tails [ as seen ] in \" The Guardian \" ! Was it N ? { Yes } it 's 5 ° C \n "
    "= = = = At N percent = = = = \n "
)
WORDS = ["the", "object", "is", "a", "name", "of", "class", "and", "value", "with", "list", "é", "ü —", "in", "self"]
# The harness's task, and records in the columns of its data, odd ones among them.
RECORDS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "arc_easy": ("arc_easy", ARC),
    "arc_challenge": ("arc_challenge", ARC),
    "hellaswag": (
        "hellaswag",
        [
            {
                "activity_label": "Baking",
                "ctx_a": " [header] How to bake [title] Heat  the oven.",
                "ctx_b": "then SHE [step]",
                "endings": ["waits. [substeps] A while. ", " leaves [title] Home"],
                "label": "1",
                "source_id": "wikihow~1",
            },
            {
                **{"activity_label": "A", "ctx_a": "B", "ctx_b": "", "endings": ["c", "d", "e"], "label": "2"},
                "source_id": "activitynet~v_-1",
            },
        ],
    ),
    "piqa": ("piqa", [{"goal": "Open a jar.", "sol1": "Twist.", "sol2": "Wait, then  twist", "label": 1}]),
    "winogrande": (
        "winogrande",
        [
            {"sentence": "Ann asked Eve and _ said: no_way.", "option1": "Ann", "option2": "Eve", "answer": "2"},
            {"sentence": "The _ was red", "option1": "car", "option2": "bus", "answer": "1"},
        ],
    ),
    "boolq": ("boolq", [{"passage": "Ice melts.\n", "question": "does ice melt", "label": 1, "idx": 0}]),
    "copa": ("copa", [COPA | {"question": "cause", "label": 0}, COPA | {"question": "effect", "label": 1}]),
    "openbookqa": (
        "openbookqa",
        [{"question_stem": "The sun is", "choices": {"text": ["hot", "cold"], "label": ["A", "B"]}, "answerKey": " B"}],
    ),
    "siqa": (
        "social_iqa",
        [{"context": "Kim fell.", "question": "Why?", "answerA": "ice", "answerB": "x", "answerC": "y", "label": "3"}],
    ),
    "commonsense_qa": (
        "commonsense_qa",
        [{"question": " Where? ", "choices": {"text": list("vwxyz"), "label": list("ABCDE")}, "answerKey": "D"}],
    ),
    "mmlu": (
        "mmlu_high_school_us_history",
        [{"question": " Who? \n", "subject": "high_school_us_history", "choices": list("wxyz"), "answer": 2}],
    ),
    "lambada_openai": ("lambada_openai", [{"text": "He took  the\nold signs"}, {"text": "One word."}]),
    "wikitext": ("wikitext", [{"page": WIKITEXT}, {"page": "A plain page ."}]),
}

FOLDERS = ("arc", "hellaswag", "piqa", "winogrande", "super_glue", "openbookqa", "siqa", "commonsense_qa", "mmlu",
           "lambada", "wikitext")  # fmt: skip


@pytest.fixture(autouse=True)
def few_tasks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness lists the folders of these tasks alone, except in slow tests: all of its folders take it seconds."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(harness, "manager", listed)


@cache
def listed() -> Any:
    """The harness's tasks in `FOLDERS`."""
    from lm_eval.tasks import TaskManager

    tasks = Path(lm_eval.__file__).parent / "tasks"
    return TaskManager(include_path=[tasks / name for name in FOLDERS], include_defaults=False)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` makes of the tests' files goes with the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def harness_file(name: str) -> Path:
    """Where the harness has a task of its own."""
    path = harness.manager().task_index[name].yaml_path
    assert path is not None
    return path


def harness_yaml(folder: Path, name: str, records: list[dict[str, Any]], **settings: Any) -> Path:
    """A task file of the harness on `records`; `settings` are its own, or include another's."""
    data = {split: str(write(folder / f"{name}.jsonl", records)) for split in ("train", "validation", "test", "dev")}
    source = {"task": name, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": data}}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(source | settings))
    return path


def harness_task(path: Path) -> Any:
    """The harness's own task, its requests built."""
    (task,) = harness.manager().load([str(path)])["tasks"].values()
    task.set_fewshot_seed(1234)
    task.build_all_requests()
    return task


def ours(name: str, folder: Path, records: list[dict[str, Any]], **settings: Any) -> Task:
    """The catalog's task on records."""
    entry = {"name": name, "path": str(write(folder / f"{name}.ours.jsonl", records)), **settings}
    return load_task(EvaluationConfig.model_validate({"tasks": [entry]}).tasks[0])


def test_all_of_the_catalog_that_the_harness_has_is_compared() -> None:
    """A new task must come into the comparison, or be none of the harness's."""
    language = {name for name, task in catalog().items() if task["kind"] == "language"}
    assert language - set(RECORDS) == {"scienceqa_text"}


@pytest.mark.parametrize("name", RECORDS)
def test_the_catalog_asks_what_the_harness_asks(name: str, tmp_path: Path) -> None:
    """Same contexts and continuations to the letter, same gold, same words to be quoted, for the same records."""
    theirs, records = RECORDS[name]
    path = harness_yaml(tmp_path, theirs, records, include=str(harness_file(theirs)))
    task = harness_task(path)
    expected: list[list[tuple[str, str]]] = [[] for _ in records]
    for request in task.instances:
        expected[request.doc_id].append(request.args if len(request.args) == 2 else ("", *request.args))
    items = [item for item in ours(name, tmp_path, records).items if isinstance(item, Scored)]
    assert [[(r.context, r.continuation) for r in item.requests] for item in items] == expected
    if name not in (
        "wikitext",
        "mmlu",
    ):  # one is not scored by items there, the other is introduced here by its subject
        theirs_quotable = [item.quotable for item in harness_items(harness_config(path))]
        for item, quotable in zip(items, theirs_quotable, strict=True):
            assert [text.split() for text in item.quotable] == [text.split() for text in quotable]
    for item, (_, doc) in zip(items, task.doc_iterator(), strict=True):
        if "gold" in item.reference:
            gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
            assert item.reference["gold"] == (gold if isinstance(gold, int) else task.doc_to_choice(doc).index(gold))
        if name == "wikitext":
            counted = task.process_results(doc, (-1.0,))
            assert item.reference["words"] == counted["word_perplexity"][1]
            assert item.reference["bytes"] == counted["byte_perplexity"][1]


@pytest.mark.parametrize("name", sorted(set(RECORDS) - {"wikitext"}))  # its perplexity is no mean over items there
def test_the_catalog_reports_what_the_harness_reports(name: str, tmp_path: Path) -> None:
    """One number a benchmark: the metric of a task is that of `lm_eval/NAME`."""
    theirs, records = RECORDS[name]
    task = harness_task(harness_yaml(tmp_path, theirs, records, include=str(harness_file(theirs))))
    (config,) = EvaluationConfig.model_validate({"tasks": [name]}).tasks
    assert (config.metric or METRICS[config.type].name) == main_metric(task, theirs)


def test_every_subject_of_mmlu_is_introduced_alike(tmp_path: Path) -> None:
    """The line before a question names the subject as each of the harness's 57 tasks does."""
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = harness_file("mmlu_anatomy").parent
    introductions = {y["dataset_name"]: y["description"] for f in folder.glob("mmlu_*.yaml") if (y := load_yaml(f))}
    assert len(introductions) == 57
    records = [{"question": "?", "subject": s, "choices": list("wxyz"), "answer": 0} for s in introductions]
    for item, introduction in zip(ours("mmlu", tmp_path, records).items, introductions.values(), strict=True):
        assert isinstance(item, Scored) and item.requests[0].context.startswith(f"{introduction}?\nA. w\n")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model."""
    folder = tmp_path_factory.mktemp("model")
    tiny_teacher(folder=folder)
    return folder


@pytest.fixture(scope="module")
def engine(model: Path) -> TransformersEngine:
    """It, loaded."""
    return TransformersEngine(model, 4096)


def measure(task: Task, engine: TransformersEngine) -> Scores:
    """The task's scores, through columns as they are kept."""
    columns: Columns = {"item": [item.name for item in task.items]}
    scored = [item for item in task.items if isinstance(item, Scored)]
    if scored:
        answers = iter(engine.loglikelihoods([request for item in scored for request in item.requests]))
        of_items = [[next(answers) for _ in item.requests] for item in scored]
        for key, of in (("logliks", "loglik"), ("tokens", "tokens"), ("greedy", "greedy")):
            columns[key] = [[getattr(score, of) for score in scores] for scores in of_items]
    else:
        asked = [item for item in task.items if isinstance(item, Asked)]
        columns["prediction"] = [said.text for said in engine.generate([i.request(task.config) for i in asked])]
    for key in task.items[0].reference:
        columns[key] = [item.reference[key] for item in task.items]
    return METRICS[task.config.type].judge(columns)


def harness_says(model: Path, *paths: Path) -> tuple[dict[str, dict[str, float]], dict[str, list[dict[str, Any]]]]:
    """What `simple_evaluate` says of the model, by task, and what it asked."""
    said = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": "float32", "device": "cpu"},
        tasks=[str(path) for path in paths],
        task_manager=harness.manager(),
        batch_size=4,
        bootstrap_iters=0,
    )
    return said["results"], said["samples"]


def level(scores: Scores, extra: str | None = None) -> float:
    """Σ / Σ weight, of the score or an extra."""
    return sum(scores.extra[extra] if extra else scores.score) / sum(scores.weight)


def test_levels_are_those_of_the_harness(model: Path, engine: TransformersEngine, tmp_path: Path) -> None:
    """One model, one set of records: accuracy with and without norm, the last word's, and rolling perplexity agree."""
    # Of letters of two and three bytes, so that a norm by bytes would choose others than one by characters.
    options = [["é" * (i % 9 + 1), "—" * (i % 4 + 1), "ü" + "é" * (i % 5)] for i in range(60)]
    choices = [
        {
            "question": f"What is {WORDS[i % 7]} {i}?",
            "choices": {"text": options[i], "label": list("ABC")},
            "answerKey": "ABC"[i % 3],
        }
        for i in range(60)
    ]
    lasts = _last_words(engine)
    pages = [{"page": " ".join(WORDS * 80) + " ."}, {"page": WIKITEXT}]
    results, _ = harness_says(
        model,
        *(
            harness_yaml(tmp_path, name, records, include=str(harness_file(name)))
            for name, records in (("arc_easy", choices), ("lambada_openai", lasts), ("wikitext", pages))
        ),
    )

    arc = measure(ours("arc_easy", tmp_path, choices), engine)
    assert level(arc) == pytest.approx(results["arc_easy"]["acc,none"])
    assert level(arc, "acc_norm") == pytest.approx(results["arc_easy"]["acc_norm,none"])
    assert level(arc) != level(arc, "acc_norm")

    lambada = measure(ours("lambada_openai", tmp_path, lasts), engine)
    assert level(lambada) == pytest.approx(results["lambada_openai"]["acc,none"])
    assert 0 < level(lambada) < 1
    assert math.exp(level(lambada, "nats_per_word")) == pytest.approx(
        results["lambada_openai"]["perplexity,none"], rel=1e-4
    )

    wikitext = measure(ours("wikitext", tmp_path, pages), engine)
    assert level(wikitext, "nats_per_word") == pytest.approx(
        math.log(results["wikitext"]["word_perplexity,none"]), rel=1e-5
    )
    assert level(wikitext, "nats_per_byte") / math.log(2) == pytest.approx(
        results["wikitext"]["bits_per_byte,none"], rel=1e-5
    )


def _last_words(engine: TransformersEngine) -> list[dict[str, str]]:
    """Texts of which some end in what the model would say."""
    contexts = [f"In {WORDS[i % 9]} {i} there is" for i in range(12)]
    said = engine.generate([GenerateRequest(context, max_new_tokens=2, chat=False) for context in contexts])
    likely = [f"{context} {word.text.strip()}" for context, word in zip(contexts, said, strict=True)]
    return [{"text": text} for text in likely + [f"A {word} is an object" for word in WORDS]]


def harness_config(path: Path | str, **more: Any) -> TaskConfig:
    """A task of the harness, by name or file."""
    return TaskConfig.model_validate({"name": "t", "kind": "language", "type": "lm_eval", "path": str(path), **more})


def test_tasks_of_the_harness_are_judged_as_by_itself(model: Path, engine: TransformersEngine, tmp_path: Path) -> None:
    """Multiple choice with examples, a last word, and answers through two filters: our engine, the harness's score."""
    docs = [{"q": f"Name {i} of", "options": ["a list", "x", "the class é"], "gold": i % 3} for i in range(12)]
    choice = harness_yaml(
        tmp_path,
        "choice",
        docs,
        output_type="multiple_choice",
        test_split="test",
        fewshot_split="train",
        num_fewshot=2,
        doc_to_text="{{q}}",
        doc_to_choice="{{options}}",
        doc_to_target="{{gold}}",
        metric_list=[{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
    )
    word = harness_yaml(tmp_path, "word", _last_words(engine), include=str(harness_file("lambada_openai")))
    prompts = [f"{name} is" for name in ("list", "name", "class", "object")]
    said = engine.generate([GenerateRequest(p, (), 12, ("e",), chat=False) for p in prompts])
    targets = [said[0].text.strip(), said[1].text.split()[0], "x", "y"]
    answer = harness_yaml(
        tmp_path,
        "answer",
        [{"q": prompt, "a": target} for prompt, target in zip(prompts, targets, strict=True)],
        output_type="generate_until",
        test_split="test",
        doc_to_text="{{q}}",
        doc_to_target="{{a}}",
        generation_kwargs={"until": ["e"], "max_gen_toks": 12},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True}],
        filter_list=[
            {
                "name": "whole",
                "filter": [{"function": "regex", "regex_pattern": r"^\s*(.*?)\s*$"}, {"function": "take_first"}],
            },
            {"name": "first", "filter": [{"function": "regex", "regex_pattern": r"(\S+)"}, {"function": "take_first"}]},
        ],
    )
    # As in babi: no filter, and targets with the spaces that the model says.
    asked = [f"{name} {i}" for name in WORDS for i in range(20)]
    answers = [said.text for said in engine.generate([GenerateRequest(t, (), 12, ("e",), chat=False) for t in asked])]
    spaced = [(text, said) for text, said in zip(asked, answers, strict=True) if said != said.strip()]
    (first, with_space), (second, without) = spaced[:2]
    raw = harness_yaml(
        tmp_path,
        "raw",
        [{"q": first, "a": with_space}, {"q": second, "a": without.strip()}],
        output_type="generate_until",
        test_split="test",
        doc_to_text="{{q}}",
        doc_to_target="{{a}}",
        generation_kwargs={"until": ["e"], "max_gen_toks": 12},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    results, samples = harness_says(model, choice, word, answer, raw)

    task = load_task(harness_config(choice))
    for item, sample in zip(task.items, samples["choice"], strict=True):
        assert isinstance(item, Scored) and item.requests[0].context.count("Name") == 3
        assert [(r.context, r.continuation) for r in item.requests] == sample["arguments"]
    scores = measure(task, engine)
    assert level(scores) == pytest.approx(results["choice"]["acc_norm,none"])
    assert level(scores, "acc") == pytest.approx(results["choice"]["acc,none"])
    scores = measure(load_task(harness_config(word)), engine)
    assert level(scores) == pytest.approx(results["word"]["acc,none"]) and 0 < level(scores) < 1
    scores = measure(load_task(harness_config(answer)), engine)
    assert level(scores) == pytest.approx(results["answer"]["exact_match,whole"]) and level(scores) > 0
    assert level(scores, "exact_match,first") == pytest.approx(results["answer"]["exact_match,first"])
    assert level(measure(load_task(harness_config(raw)), engine)) == results["raw"]["exact_match,none"] == 0.5


def test_items_of_the_harness_and_their_judgment_again(tmp_path: Path) -> None:
    """`limit` takes the first documents; kept columns are judged by a harness that is loaded anew, if it asks the same.

    Its own documents have the right answers: another version's, or in another order, would judge by others.
    """
    path = harness_yaml(tmp_path, "arc", ARC * 3, include=str(harness_file("arc_easy")))
    config = harness_config(path, limit=3)
    items = load_task(config).items
    assert [item.name for item in items] == ["0", "1", "2"]
    assert items[0].reference == {"task": str(path), "metric": "acc_norm"}
    columns: Columns = {
        "item": ["0", "1", "2"],
        "logliks": [[-3.0, -2.9], [-1.0, -2.0, -3.0], [-3.0, -1.0]],
        "tokens": [[1, 1], [1, 1, 1], [1, 1]],
        "greedy": [[False, False], [False] * 3, [False, False]],
        "task": [str(path)] * 3,
        "metric": ["acc_norm"] * 3,
    }
    expected = Scores([0.0, 1.0, 1.0], [1.0] * 3, {"acc": [1.0, 1.0, 1.0]})
    assert METRICS["lm_eval"].judge(columns) == expected
    harness._task.cache_clear()
    harness._requests.cache_clear()
    assert METRICS["lm_eval"].judge(columns) == expected
    write_items(items_path(tmp_path, "t", "teacher"), columns, None)
    reported = summarize(tmp_path, ["teacher"], EvaluationConfig(tasks=(config,))).tasks["t"]
    assert (reported.metric, reported.is_share) == ("acc_norm", True)
    asked = load_task(config).asked
    for of_items, refused in ((asked, nullcontext()), ("of others", pytest.raises(UserError, match="does not ask"))):
        write_items(items_path(tmp_path, "t", "teacher"), columns, Stamp(of_items, "vllm, fp32", "of the model", {}))
        with refused:
            found = summarize(tmp_path, ["teacher"], EvaluationConfig(tasks=(config,))).tasks["t"]
            assert (found.asked, found.engine) == (asked, "vllm, fp32")
    with pytest.raises(UserError, match="its data is not what it was"):
        METRICS["lm_eval"].judge({key: column * 3 for key, column in columns.items()})
    with pytest.raises(UserError, match=r"limit is 7, but .* holds 6"):
        load_task(harness_config(path, limit=7))


ASKING = {"test_split": "test", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}", "output_type": "generate_until"}
EXACT = {"metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]}


OPTIONS = ["the left bank", "the right bank"]
MANY_ANSWERS = {
    "output_type": "generate_until",
    "doc_to_text": "{{q}}\nA:",
    "doc_to_target": "{{['' ~ a, 'the ' ~ a]}}",
}
CHOSEN = {"output_type": "multiple_choice", "doc_to_choice": OPTIONS}


@pytest.mark.parametrize(
    ("settings", "quotable"),
    [
        (MANY_ANSWERS, ("What is 1?\nA: 10", "What is 1?\nA: the 10")),
        (MANY_ANSWERS | {"doc_to_target": "a", "num_fewshot": 0}, ("What is 1?\nA: 10",)),  # a column of numbers
        (CHOSEN | {"doc_to_text": "{{q}}", "doc_to_target": "i"}, ("What is 1? the right bank",)),
        (CHOSEN | {"doc_to_text": "i", "doc_to_target": "{{q}}"}, ("the right bank What is 1?",)),  # as in winogrande
        # no option is right
        (CHOSEN | {"doc_to_text": "{{q}}", "doc_to_target": "{{7 * i}}", "num_fewshot": 0}, ("What is 1? ",)),
        ({"output_type": "loglikelihood", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}"}, ("What is 1? 10",)),
    ],
)
def test_what_could_be_quoted_of_a_document(
    settings: dict[str, Any], quotable: tuple[str, ...], tmp_path: Path
) -> None:
    """Its question with each right answer, whatever way the harness has of saying them, and no example before it."""
    docs = [{"q": f"What is {i}?", "a": 10 * i, "i": i % 2} for i in range(8)]
    metric = {"metric": "acc" if "doc_to_choice" in settings else "exact_match", "aggregation": "mean"}
    path = harness_yaml(
        *(tmp_path, "quoted", docs),
        test_split="test",
        fewshot_split="train",
        metric_list=[metric | {"higher_is_better": True}],
        **({"num_fewshot": 3} | settings),
    )
    assert load_task(harness_config(path)).items[1].quotable == quotable


def test_examples_of_the_training_split_are_no_items(tmp_path: Path) -> None:
    """Rows of the split that examples are drawn from hold no item; rows of the items hold all of them."""
    # each of other words: what a tenth of the items share is the template
    docs = [{"q": " ".join(f"w{i}x{j}" for j in range(30)), "a": f"is {i}"} for i in range(40)]
    files = {
        split: str(write(tmp_path / f"{split}.jsonl", of)) for split, of in (("train", docs[20:]), ("test", docs[:20]))
    }
    path = harness_yaml(
        *(tmp_path, "shots", docs),
        **(ASKING | EXACT | {"fewshot_split": "train", "num_fewshot": 5, "dataset_kwargs": {"data_files": files}}),
    )
    marks = TaskMarks(load_task(harness_config(path)))
    for of_rows, found in ((docs[20:], 0), (docs[:20], 20)):
        turns = [[{"role": "user", "content": d["q"]}, {"role": "assistant", "content": d["a"]}] for d in of_rows]
        rows = [Row("chat", place, messages, [], False) for place, messages in enumerate(turns)]
        assert len(list(marks.found(look_in_rows(rows, marks.marks)))) == found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ASKING | EXACT | {"generation_kwargs": {"do_sample": True, "temperature": 0.7}}, "samples its answers"),
        (ASKING | EXACT | {"repeats": 4}, "samples its answers"),
        (ASKING | {"metric_list": [{"metric": "bleu", "aggregation": "bleu", "higher_is_better": True}]}, "is a mean"),
        (ASKING | EXACT | {"unsafe_code": True}, "runs what a model writes"),
        (ASKING | EXACT | {"doc_to_image": ["q"]}, "needs images"),
        (ASKING | EXACT | {"test_split": "none"}, "cannot build it"),
        (
            {"test_split": "test", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "q"},
            "type perplexity",
        ),
    ],
)
def test_what_is_not_supported_is_refused_before_a_model_is_loaded(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """Whatever could not be measured as the harness does is the user's to know at once."""
    path = harness_yaml(tmp_path, "task", [{"q": "a", "a": "b"}], **settings)
    with pytest.raises(UserError, match=message):
        list(harness_items(harness_config(path)))


def test_unknown_tasks_and_groups_of_the_harness() -> None:
    """A near name is offered; a group is not one task."""
    with pytest.raises(UserError, match=r"no such task; did you mean .*arc_easy"):
        load_task(harness_config("arc_eazy"))
    with pytest.raises(UserError, match="lm_eval/mmlu is a group of tasks"):
        load_task(harness_config("mmlu"))
