"""`benchmarks.result.sight`: real models are asked once, about pictures of the evaluation, and the page shows it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from result_recipes import recipe
from tiny import picture, tiny_processor, tiny_student, tiny_teacher

from benchmarks.result import jobs, sight
from benchmarks.result.rows import chosen
from benchmarks.result.table import Comparison
from lingu_ray.atomic import write_json
from lingu_ray.errors import UserError

pytestmark = pytest.mark.slow  # loads models for each question

NARROW, NATURAL = (Comparison("medium", data, 0) for data in ("narrow", "natural"))


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the teacher, an adapted model that has weights, and rows about pictures."""
    monkeypatch.chdir(tmp_path)
    teacher = tiny_teacher(folder=tmp_path / jobs.TEACHER_PATH)
    tiny_processor().tokenizer.save_pretrained(tmp_path / jobs.TEACHER_PATH)
    folder = jobs.run_folder(chosen(["adapted-0"])[0])
    tiny_student(teacher).save_pretrained(folder.export)
    tiny_processor().save_pretrained(folder.export)
    write_json(folder.exported, {"step": 1})
    data = tmp_path / "runs/result/data/sight"
    data.mkdir(parents=True)
    for place in range(3):
        (data / f"{place}.png").write_bytes(picture(place))
    for source in recipe("sight").validate().corpus.sources:
        rows = [{"prompt": "What?", "completion": f"It is {n}.", "image": f"{n}.png"} for n in range(3)]
        (data / f"{source.name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_sight_is_asked_of_the_evaluations_pictures():
    """The recipe's sources are the held-out ones, and all that the data has of them."""
    config = recipe("sight").validate()
    assert all("/data/sight/" in source.path for source in config.corpus.sources)
    assert config.train.precision == "bf16" and config.teacher.path.endswith(jobs.TEACHER_PATH)


def test_models_are_asked_once(experiment: Path, capsys: pytest.CaptureFixture[str]):
    """What was asked of a model in one comparison counts in another; one that was made again is asked again."""
    sight.main([])
    assert capsys.readouterr().out.count("pictures tell descriptions") == 1
    first, copied = (sight.asked_file(one, "adapted") for one in (NARROW, NATURAL))
    assert first.read_bytes() == copied.read_bytes()
    found = json.loads(first.read_text(encoding="utf-8"))
    assert [(one["source"], one["rows"], one["pictured"]) for one in found] == [("descriptions", 3, 3)]
    sight.main(["medium-narrow-0"])
    assert not capsys.readouterr().out
    later = time.time() + 9
    os.utime(jobs.compared(NARROW)["adapted"], (later, later))
    sight.main(["medium-natural-0"])
    assert "medium-natural-0 adapted: pictures tell" in capsys.readouterr().out


def test_what_was_found_lies_beside_the_page(experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The files are copied there and read from there, where the models are not."""
    sight.main(["medium-narrow-0"])
    out = tmp_path / "docs"
    here = sight.publish(NARROW, out)
    monkeypatch.chdir(out)
    assert sight.publish(NARROW, out) == here and list(here) == ["adapted"]
    assert sight.publish(NATURAL, out) == {}


def test_a_comparison_that_is_not_here_is_named(experiment: Path):
    """One without models, or of no such name, is told with those that there are."""
    with pytest.raises(
        UserError,
        match=r"'heavy-natural-0' are here; there are: medium-narrow-0, medium-natural-0, medium-natural_300-0$",
    ):
        sight.main(["heavy-natural-0"])
