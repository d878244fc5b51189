"""An evaluation in MLflow: a run with report and settings, and nested under it one for each model, with its scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lingu_ray.config import TrackingConfig
from lingu_ray.evaluation.scores import figures_of
from lingu_ray.runtime.environment import read_environment
from lingu_ray.runtime.folder import RunFolder
from lingu_ray.runtime.tracking import STORE, MlflowRun, flat, store_uri


def open_evaluation(settings: TrackingConfig, out: Path, config: BaseModel) -> MlflowRun:
    """The MLflow run of the evaluation in `out`: found again, or a new one with `config` as its parameters.

    Without a URI in the settings or the environment the store lies beside `out` where runs have one there, else in it.
    """
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    uri = store_uri(settings, out.parent if (out.parent / STORE).exists() else out)
    run = MlflowRun(uri, settings, RunFolder(out).mlflow, out.name, flat(config))
    if settings.system_metrics:
        run.watch_system()
    return run


def log_evaluation(
    run: MlflowRun, settings: TrackingConfig, out: Path, result: dict[str, Any], models: dict[str, Path]
) -> None:
    """Log the files of `out`, and the figures of each model of `result` (the content of `recovery.json`).

    `models`: where they lie, of those that are known; a tag tells.
    """
    out = out.resolve()
    run.log_environment(read_environment(out))
    run.log_files(*(out / name for name in ("report.html", "recovery.json", "recovery.png")))
    for model in dict.fromkeys(model for task in result["tasks"].values() for model in task["models"]):
        tags = settings.tags | ({"model": str(models[model])} if model in models else {})
        nested = settings.model_copy(update={"run_name": None, "parent": out, "tags": tags})
        with MlflowRun(run.uri, nested, out / ".mlflow" / f"{model}.json", model, {}) as child:
            child.log_figures(figures_of(result, model))
