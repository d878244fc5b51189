"""Measure models on evaluation tasks, and say what came back.

    python -m lingu_ray.evaluate teacher=DIR adapted=DIR distilled=DIR tasks=FILE.yaml out=DIR

NAME=MODEL: a folder, a hub id or a .gguf file. The names teacher, adapted, ce_only and distilled enter recovery and
retention; any other name is measured beside them.
tasks=FILE: YAML of the settings' section `evaluation` (tasks, tokens_per_batch, bootstrap, …); a relative `path` of a
task starts where the command runs.
out=DIR: gets recovery.json, recovery.png and items/*.parquet. With no model named, the metrics are made again from the
items that are there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml
from pydantic import ValidationError
from transformers.utils.logging import disable_progress_bar

from lingu_ray.config import EvaluationConfig
from lingu_ray.errors import UserError, run_command
from lingu_ray.evaluation.items import measured_models
from lingu_ray.evaluation.plots import plot_recovery
from lingu_ray.evaluation.recovery import summarise
from lingu_ray.evaluation.run import evaluate


def main(arguments: list[str]) -> None:
    """Run the command; raises UserError for what the user can mend."""
    given = {name: value for name, _, value in (argument.partition("=") for argument in arguments)}
    if not {"tasks", "out"} <= set(given) or not all(given.values()) or len(given) < len(arguments):
        raise UserError(f"give NAME=MODEL …, tasks=FILE.yaml and out=DIR, each once\n\n{__doc__}")
    settings, out_dir = _settings(Path(given.pop("tasks"))), Path(given.pop("out"))
    if given:
        result = evaluate({name: Path(value) for name, value in given.items()}, settings, out_dir)
    else:
        result = summarise(out_dir, measured_models(out_dir, settings), settings)
    plot_recovery(result, out_dir / "recovery.png")
    print(result["summary"]["verdict"])


def _settings(path: Path) -> EvaluationConfig:
    try:
        return EvaluationConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise UserError(f"tasks={path}: {error}") from error


if __name__ == "__main__":
    if not sys.stderr.isatty():
        disable_progress_bar()  # Transformers' own bars; a log has a line a task
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(print(__doc__))
    run_command(main)
