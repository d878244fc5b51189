"""What is checked and told before a run starts: tasks against the data that it is trained on, passes over these."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from lingu_ray import train
from lingu_ray.config import Config
from lingu_ray.corpus.store import Corpus
from lingu_ray.errors import UserError
from lingu_ray.runtime.preparation import check_tasks, say_passes
from tuning import sweep

HUB = {"name": "seen", "format": "cauldron", "path": "org/set", "subset": "a", "language_heavy": True}


def run_of(tasks: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    """Settings of a run with two sources, of the hub and of a file, and these tasks."""
    return {
        "name": "mine",
        "student": {"path": "/vlm"},
        "teacher": {"path": "/lm"},
        "corpus": {"sources": [HUB, {"name": "file", "format": "llava", "path": "/data/x.jsonl"}]},
        "evaluation": {"tasks": tasks},
    } | settings


@pytest.mark.parametrize(
    ("task", "distill", "refused"),
    [
        ({"split": "train"}, {}, True),
        ({"split": "train", "limit": 5}, {}, True),
        ({"path": "/data/x.jsonl", "subset": None}, {}, True),
        ({"split": "test"}, {}, False),
        ({"split": "train", "subset": "b"}, {}, False),
        ({"split": "train", "where": "{{id > 9}}"}, {}, False),
        ({"split": "train", "in_mean": False}, {}, False),
        ({"path": "/data/x.jsonl", "subset": None}, {"policy": "language_only"}, False),  # not trained on
    ],
)
def test_no_mean_is_of_rows_that_are_trained_on(task: dict[str, Any], distill: dict[str, Any], refused: bool) -> None:
    """The split or file of a source, as a whole or its first rows, is no test: its score would be of memory."""
    asked = {"name": "asked", "kind": "vision", "type": "anls", "format": "cauldron", "path": "org/set", "subset": "a"}
    config = Config.model_validate(run_of([asked | task], distill=distill))
    source = "file" if "path" in task else "seen"
    said = f"tasks: asked: asks what the model is trained on, the rows of source {source} .*tasks.asked.in_mean=false"
    with pytest.raises(UserError, match=said) if refused else nullcontext():
        check_tasks(config)


@pytest.mark.parametrize("command", (train.main, pytest.param(sweep.main, marks=pytest.mark.slow)))
def test_commands_refuse_them(tmp_path: Path, command: Callable[[list[str]], None]) -> None:
    """A run and a sweep, before models and data are read."""
    base = tmp_path / "base.yaml"
    task = {"name": "asked", "kind": "vision", "type": "anls"} | {key: HUB[key] for key in ("format", "path", "subset")}
    choices = {"name": "choices", "kind": "language", "type": "multiple_choice", "path": "/data/items.jsonl"}
    base.write_text(
        yaml.safe_dump(run_of([task, choices], name="mine", output_dir=str(tmp_path / "runs"))), encoding="utf-8"
    )
    space = {"name": "swept", "base": str(base), "search": {"distill.w_kd": {"grid": [1, 2]}}, "cases": {}}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space), encoding="utf-8")
    with pytest.raises(UserError, match="asks what the model is trained on"):
        command([str(base if command is train.main else tmp_path / "space.yaml")])


@pytest.mark.parametrize(("steps", "often"), [(50, False), (51, True), (151, False)])
def test_rows_that_are_seen_often_are_told(
    steps: int, often: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """More than five passes over a source, counted from the step from which on its data are these."""
    counts = {"accepted": 4, "validation": 0, "used": 4}
    manifest = {
        "rows": 10,
        "rows_per_shard": 10,
        "sources": {"few": counts, "more": {"accepted": 60, "validation": 0, "used": 6}},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    tree = run_of([], train={"steps": steps, "rows_per_step": 1}) | {"name": "tiny"}
    say_passes(Config.model_validate(tree), Corpus(tmp_path), 101 if steps > 100 else 0)
    assert ("tiny: more than 5 passes over few: rows seen so often are memorized" in caplog.text) == often
