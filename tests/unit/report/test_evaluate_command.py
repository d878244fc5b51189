"""The command that measures a run that was not evaluated."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from lingu_ray.config import Config
from lingu_ray.config.command_line import to_yaml
from lingu_ray.evaluate import read_arguments
from lingu_ray.report.evaluate_command import evaluate_command
from lingu_ray.report.run_page import write_report
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
    python, _, module, *arguments = shlex.split(evaluate_command(config(), run) or "")
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
    arguments = shlex.split(evaluate_command(config(distill={"policy": "none"}), RunFolder(tmp_path)) or "")[3:]
    assert list(read_arguments(arguments)[0]) == ["teacher", "adapted", "plain_ce"]


def test_a_model_with_code_of_its_own_has_no_command(tmp_path: Path) -> None:
    """Evaluation would refuse its export, which has the code beside the weights; the page says so."""
    run = RunFolder(tmp_path)
    run.export.mkdir()
    run.config.write_text(to_yaml(config()), "utf-8")
    said = "code of its own, which evaluation does not run"
    assert said not in write_report(tmp_path).read_text("utf-8")
    (run.export / "modeling_mine.py").touch()
    assert evaluate_command(config(), run) is None
    page = write_report(tmp_path).read_text("utf-8")
    assert said in page and "it has not ended" not in page and "lingu_ray.evaluate" not in page
