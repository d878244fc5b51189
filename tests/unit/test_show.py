"""What a finished run says on the terminal: where report, model and MLflow store lie, and how to measure it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from lingu_ray.config import Config
from lingu_ray.config.command_line import to_yaml
from lingu_ray.train import show


def test_what_is_printed_can_be_copied(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Absolute paths that exist, each one word for the shell, also from a folder with a space in its name. The same is
    printed where MLflow does not answer by then, with a warning."""
    home = tmp_path / "my runs"
    corpus, run = home / "corpus", home / "runs" / "small"
    for folder in (corpus, run / "export"):
        folder.mkdir(parents=True)
    counts = {"read": 2, "accepted": 2, "rejected": {}, "truncated": 0, "used": 1, "validation": 1}
    (corpus / "shard-00000.parquet").touch()
    (corpus / "manifest.json").write_text(json.dumps({"rows": 1, "rows_per_shard": 1, "sources": {"stories": counts}}))
    (run / "corpus.json").write_text(json.dumps({"path": str(corpus)}))
    monkeypatch.chdir(home)
    config = Config.model_validate(
        {
            "name": "small",
            "student": {"path": "owner/vlm"},
            "teacher": {"path": "owner/lm"},
            "corpus": {"sources": [{"name": "stories", "format": "text", "path": "x", "language_heavy": True}]},
            "tracking": {"system_metrics": False},
        }
    )
    (run / "config.yaml").write_text(to_yaml(config))
    show(config, Path("runs/small/export"), None)
    lines = capsys.readouterr().out.splitlines()
    said = dict(re.split(r"\s+", line, maxsplit=1) for line in lines if line.startswith(("report", "model", "compare")))
    assert shlex.split(said["report"]) == [str(run / "report" / "report.html")]
    assert shlex.split(said["model"]) == [str(run / "export")] and (run / "export" / "README.md").exists()
    assert shlex.split(said["compare"])[-1] == f"sqlite:///{home / 'runs' / 'mlflow.db'}"
    [command] = [line for line in lines if line.startswith("python -m lingu_ray.evaluate")]
    assert f"distilled={run / 'export'}" in shlex.split(command)
    assert command in (run / "report" / "report.html").read_text().replace("&#39;", "'")

    away = config.model_copy(update={"tracking": config.tracking.model_copy(update={"uri": "http://127.0.0.1:9"})})
    show(away, Path("runs/small/export"), None)
    assert capsys.readouterr().out.splitlines()[:-1] == lines[:-1]
    assert "http://127.0.0.1:9" in caplog.text and "the same command logs them in MLflow" in caplog.text
