"""The command that measures a run that was not evaluated."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from lingu_ray.config import Config
from lingu_ray.evaluate import read_arguments
from lingu_ray.report.evaluate_command import evaluate_command
from lingu_ray.runtime.run_folder.folder import RunFolder


def config(**changes: Any) -> Config:
    """A run whose student is a folder, and whose teacher is of the hub."""
    source = {"name": "stories", "format": "text", "path": "x", "language_heavy": True}
    tree = {"name": "small", "student": {"path": "models/my vlm"}, "teacher": {"path": "owner/lm"}}
    return Config.model_validate({**tree, "corpus": {"sources": [source]}, **changes})


def test_it_names_the_models_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line reads it as meant: the run's models by the names of the method, and a folder of the run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "my vlm").mkdir(parents=True)
    run = RunFolder(Path("runs/small run"))
    for folder in (run.export, run.root / "controls" / "plain_ce" / "export"):
        folder.mkdir(parents=True)
    python, _, module, *arguments = shlex.split(evaluate_command(config(), run))
    assert (python, module) == ("python", "lingu_ray.evaluate")
    models, settings = read_arguments(arguments)
    absolute = tmp_path / "runs" / "small run"
    assert models == {
        "teacher": Path("owner/lm"),
        "adapted": tmp_path / "models" / "my vlm",
        "distilled": absolute / "export",
        "plain_ce": absolute / "controls" / "plain_ce" / "export",
    }
    assert settings.out == absolute / "evaluation"
    assert {task.kind for task in settings.tasks} == {"language", "vision"}


def test_without_control_or_teacher_it_names_what_there_is(tmp_path: Path) -> None:
    """A run without control has none in the command; a run by cross-entropy alone made the plain-CE model."""
    arguments = shlex.split(evaluate_command(config(distill={"policy": "none"}), RunFolder(tmp_path)))[3:]
    assert list(read_arguments(arguments)[0]) == ["teacher", "adapted", "plain_ce"]
