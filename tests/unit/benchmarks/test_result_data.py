"""`benchmarks.result.data` on a few made-up pictures and texts: splits are apart, the manifest says what is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest
from made_up_sets import sentence, write_lines, write_sets
from PIL import Image
from result_recipes import tasks

from benchmarks.result.data import DataConfig, main, prepare
from benchmarks.result.files import read_json_lines
from benchmarks.result.groups import SPLITS
from benchmarks.result.manifest import prove_pictures, prove_texts
from benchmarks.result.picture_sets import SENTENCES
from benchmarks.result.texts import quotes
from lingu_ray.config import SourceConfig
from lingu_ray.corpus.formats import FORMATS
from lingu_ray.errors import UserError
from lingu_ray.evaluation.tasks.load import load_task

pytestmark = pytest.mark.slow  # compares every picture and text with every other

PLANTED = "val/Fruit/Apple/0.png"  # a held-out picture of groceries


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up sets, with four things planted: a held-out picture among the training ones, once as it is and once
    in another format, a training text that quotes a held-out one, and a passage that forty prompts ask about."""
    folder = tmp_path_factory.mktemp("sets")
    write_sets(folder)
    grocery, clothing = folder / "images/grocery_store", folder / "images/clothing"
    shutil.copyfile(grocery / PLANTED, grocery / "train/Fruit/Apple/5.png")
    Image.open(clothing / "validation/0.png").save(clothing / "train/5.jpg", quality=95, subsampling=0)
    lines = (clothing / "train.jsonl").read_text().replace("train/5.png", "train/5.jpg")
    (clothing / "train.jsonl").write_text(lines)
    quoted = read_json_lines(folder / "eval/lambada_openai.jsonl")[0]["context"]
    records = read_json_lines(folder / "text/t0_19k.jsonl")
    planted = [{"task": "quarel", "prompt": f"Read: {quoted}", "completion": "stone"}]
    random = Random(5)
    passage = sentence(random, 80)
    planted += [{"task": "duorc", "prompt": f"{passage} {sentence(random, 8)}", "completion": "no"} for _ in range(40)]
    write_lines(folder / "text/t0_19k.jsonl", [*records, *planted])
    return folder


@pytest.fixture(scope="module")
def prepared(data: Path) -> Path:
    out = data.parent / "prepared"
    prepare(data, out, DataConfig())
    return out


def manifest(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text())


def images(folder: Path) -> set[str]:
    """The pictures that a folder's rows name."""
    return {row["image"] for file in folder.glob("*.jsonl") for row in read_json_lines(file) if "image" in row}


def test_splits_are_apart(prepared: Path):
    """No picture, by its pixels, and no thirteen words in a row are in training and in a held-out split: each split
    has its own, and what was planted was left out."""
    counts = manifest(prepared)["counts"]
    assert all(counts[split] for split in SPLITS)
    prove_pictures(prepared)
    prove_texts(prepared, set())
    left_out = manifest(prepared)["left_out"]
    assert left_out["grocery"] == {"repeated": 1}  # the same pixels
    assert left_out["clothing"] == {"like a held-out one": 1}  # nearly the same
    assert left_out["t0"]["quotes a held-out text"] == 1
    assert left_out["t0"]["evaluation: shown in training"] > 1  # what so many prompts share was taken for a template
    passages = [row["text"] for row in read_json_lines(prepared / "evaluation/t0_text.jsonl")]
    learned = {" ".join(row["text"].split()[:40]) for row in read_json_lines(prepared / "train/t0_text.jsonl")}
    assert passages and not [text for text in passages if " ".join(text.split()[:40]) in learned]


def test_the_proof_can_fail(prepared: Path, tmp_path: Path):
    """A held-out picture or text that comes into the training files afterwards is found, and named."""
    folder = tmp_path / "spoiled"
    shutil.copytree(prepared, folder)
    held_out = read_json_lines(folder / "evaluation/clothing.jsonl")[0]
    rows = read_json_lines(folder / "train/clothing.jsonl")
    write_lines(folder / "train/clothing.jsonl", [*rows, {**rows[0], "image": held_out["image"]}])
    with pytest.raises(UserError, match="one picture in two splits"):
        prove_pictures(folder)
    text = read_json_lines(folder / "evaluation/encyclopedic.jsonl")[0]["text"]
    write_lines(folder / "train/t0_text.jsonl", [{"text": text}])
    with pytest.raises(UserError, match=r"train/t0_text\.jsonl:1: quotes a held-out text"):
        prove_texts(folder, set())
    with pytest.raises(UserError, match=r"evaluation/\w+\.jsonl:\d+: is shown in training"):
        prove_texts(folder, quotes(text))


def test_manifest_is_true_and_the_same_again(prepared: Path, data: Path, tmp_path: Path):
    """Counts are those of the files; the same data and seed give the same files to the bit, another seed others."""
    said = manifest(prepared)
    for split in SPLITS:
        files = {file.stem: len(read_json_lines(file)) for file in (prepared / split).glob("*.jsonl")}
        assert said["counts"][split] == files
    prepare(data, tmp_path / "again", DataConfig())
    assert manifest(tmp_path / "again") == said
    prepare(data, tmp_path / "other", DataConfig(seed=1))
    assert manifest(tmp_path / "other")["sha256"] != said["sha256"]


def test_rows_and_items_are_of_the_formats(prepared: Path):
    """Each training row is read by the format that the recipes give its source, each held-out task by evaluation.yaml's
    settings."""
    for file in sorted((prepared / "train").glob("*.jsonl")):
        kind = "text" if file.stem == "t0_text" else "prompt_completion"
        source = SourceConfig(name=file.stem, format=kind, path=str(file))
        for row in read_json_lines(file):
            assert list(FORMATS[kind](row, source)), (file, row)
    assert {task.name for task in tasks().tasks} == manifest(prepared)["counts"]["evaluation"].keys()
    for task in tasks().tasks:
        path = str(prepared / "evaluation" / f"{task.name}.jsonl")
        assert load_task(task.model_copy(update={"path": path, "limit": None})).items


def test_sight_has_sentences_about_the_evaluations_pictures(prepared: Path):
    """Rows as training has them, about pictures that no training row shows, each a picture of the evaluation."""
    shown = {split: images(prepared / split) for split in SPLITS}
    files = sorted((prepared / "sight").glob("*.jsonl"))
    assert [file.stem for file in files] == [SENTENCES]
    assert images(prepared / "sight") <= shown["evaluation"]
    assert not images(prepared / "sight") & shown["train"]
    for file in files:
        source = SourceConfig(name=file.stem, format="prompt_completion", path=str(file))
        assert all(list(FORMATS["prompt_completion"](row, source)) for row in read_json_lines(file))


def test_words_of_templates_are_no_quotation():
    """Neither a template nor the half of one with a word of its own document counts; the document does."""
    random = Random(1)
    template, document = sentence(random, 15), sentence(random, 20)
    known = quotes(template)
    assert not quotes(template, known)
    assert quotes(f"{template} {document}", known) == quotes(document)


def test_a_missing_set_and_an_old_folder_are_named(data: Path, prepared: Path, tmp_path: Path):
    """What is missing is told by its path before anything is written, and a folder that exists is not touched."""
    with pytest.raises(UserError, match=r"questions\.json cannot be read.*README"):
        main([str(data), str(tmp_path / "out"), f"easy_vqa={tmp_path}"])
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="exists"):
        main([str(data), str(prepared)])
    with pytest.raises(UserError, match="name the folder"):
        main([str(data)])
