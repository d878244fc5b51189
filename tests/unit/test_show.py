"""What a finished run says on the terminal: where report, model and MLflow store lie, and how to measure it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from lingu_ray.config import Config, TrackingConfig
from lingu_ray.config.command_line import to_yaml
from lingu_ray.errors import Interrupted
from lingu_ray.report.run_report import write_run_report
from lingu_ray.train import kept, show


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a space in its name, and the finished run `runs/small`."""
    home = tmp_path / "my runs"
    corpus, run = home / "corpus", home / "runs" / "small"
    for folder in (corpus, run / "export"):
        folder.mkdir(parents=True)
    counts = {"read": 2, "accepted": 2, "rejected": {}, "truncated": 0, "used": 1, "validation": 1}
    (corpus / "shard-00000.parquet").touch()
    (corpus / "manifest.json").write_text(json.dumps({"rows": 1, "rows_per_shard": 1, "sources": {"stories": counts}}))
    (run / "corpus.json").write_text(json.dumps({"path": str(corpus)}))
    monkeypatch.chdir(home)
    (run / "config.yaml").write_text(to_yaml(config()))
    return home


def config() -> Config:
    """The run's settings."""
    return Config.model_validate(
        {
            "name": "small",
            "student": {"path": "owner/vlm"},
            "teacher": {"path": "owner/lm"},
            "corpus": {"sources": [{"name": "stories", "format": "text", "path": "x", "language_heavy": True}]},
            "tracking": {"system_metrics": False},
        }
    )


@pytest.mark.slow
def test_what_is_printed_can_be_copied(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Absolute paths that exist, each one word for the shell, also from a folder with a space in its name."""
    run = home / "runs" / "small"
    show(config(), Path("runs/small/export"), None)
    lines = capsys.readouterr().out.splitlines()
    said = dict(re.split(r"\s+", line, maxsplit=1) for line in lines if line.startswith(("report", "model", "compare")))
    assert shlex.split(said["report"]) == [str(run / "report" / "report.html")]
    assert shlex.split(said["model"]) == [str(run / "export")] and (run / "export" / "README.md").exists()
    assert shlex.split(said["compare"])[-1] == f"sqlite:///{home / 'runs' / 'mlflow.db'}"
    [command] = [line for line in lines if line.startswith("python -m lingu_ray.evaluate")]
    assert f"distilled={run / 'export'}" in shlex.split(command)
    assert command in (run / "report" / "report.html").read_text().replace("&#39;", "'")


def test_what_fails_at_the_end_is_made_by_the_same_command(
    home: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A report that cannot be written is an error, a store that takes no files a warning; both are made up for."""
    run, export = home / "runs" / "small", Path("runs/small/export")
    shutil.copy(empty_store, run.parent / "mlflow.db")
    (run / "report").write_text("in the way")
    with pytest.raises(FileExistsError):
        show(config(), export, None)
    assert f"The report failed; model and scores are complete: {export}" in caplog.text
    assert "The same command, run again, writes the report; nothing is trained again." in caplog.text
    assert not (run / "mlflow.json").exists()
    (run / "report").unlink()
    (run.parent / "mlartifacts").write_text("in the way")
    show(config(), export, None)
    assert "MLflow does not have all of" in caplog.text and "mlartifacts" in caplog.text
    assert (run / "report" / "report.html").exists()
    (run.parent / "mlartifacts").unlink()
    show(config(), export, None)
    assert list((run.parent / "mlartifacts").rglob("report.html"))


def test_what_is_stopped_has_not_failed(caplog: pytest.LogCaptureFixture) -> None:
    """Ctrl-C while models are measured: the command says that it stopped, and nothing of a failure before."""
    with pytest.raises(Interrupted), kept("The evaluation failed", "evaluates what is left"):
        raise Interrupted("stopped; all answers so far are kept")
    assert not caplog.records


def test_an_mlflow_that_does_not_answer_is_a_warning(
    home: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A finished run ends well where MLflow is away by then: all is printed, and what is missing is named."""
    away = config().model_copy(update={"tracking": TrackingConfig(uri="http://127.0.0.1:9", system_metrics=False)})
    show(away, Path("runs/small/export"), None)
    assert str(home / "runs" / "small" / "report") in capsys.readouterr().out
    assert "http://127.0.0.1:9" in caplog.text and "the same command logs them in MLflow" in caplog.text


def test_a_report_of_a_run_whose_corpus_is_gone(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is written without the corpus; the card, which shows its counts, stays as it was, and a line says so."""
    (home / "runs" / "small" / "export" / "README.md").write_text("as it was")
    shutil.rmtree(home / "corpus")
    assert write_run_report(config(), None).exists()
    assert (home / "runs" / "small" / "export" / "README.md").read_text() == "as it was"
    assert "the corpus is gone; the model card, which shows its counts, is not written" in caplog.text
