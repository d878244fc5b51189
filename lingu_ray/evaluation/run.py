"""Evaluate several models on the same tasks."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lingu_ray.config import EvaluationConfig
from lingu_ray.errors import UserError
from lingu_ray.evaluation.engine import Engine
from lingu_ray.evaluation.items import items_path, write_items
from lingu_ray.evaluation.metrics import score_items
from lingu_ray.evaluation.recovery import summarise
from lingu_ray.evaluation.tasks import Task, load_task
from lingu_ray.evaluation.transformers_engine import TransformersEngine

log = logging.getLogger(__name__)


def evaluate(
    models: dict[str, Path], settings: EvaluationConfig, out_dir: Path, measured: Sequence[str] = ()
) -> dict[str, Any]:
    """Measure every model (name → folder, hub id or .gguf file) on every task it can take.

    Models named `teacher`, `adapted`, `ce_only` and `distilled` enter recovery and retention; others are measured
    beside them. A model without eyes (the teacher) is measured on the language tasks alone. All items are checked
    before the first model is loaded; models are loaded one after another.

    Args:
        models: what to measure.
        settings: tasks, token budget, resamples, thresholds.
        out_dir: gets `items/<task>.<model>.parquet` and `recovery.json`.
        measured: models whose items lie in `out_dir` already; they are compared, and not loaded.

    Returns:
        The content of `recovery.json`.

    Raises:
        UserError: no models or tasks, a bad item, a model that cannot be loaded.
    """
    if not models or not settings.tasks:
        raise UserError("nothing to evaluate: name at least one model and one of evaluation.tasks")
    for name in models:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise UserError(f"a model's name is of letters, digits, _ and -, found {name!r}")
    tasks = [load_task(config) for config in settings.tasks]
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, path in models.items():
        engine = TransformersEngine(path, settings.tokens_per_batch)
        for task in tasks:
            _measure(task, name, engine, out_dir)
        del engine  # before the next model is loaded
    return summarise(out_dir, [*measured, *models], settings)


def _measure(task: Task, model: str, engine: Engine, out_dir: Path) -> None:
    # What an earlier evaluation left must not be taken for this one's.
    items_path(out_dir, task.config.name, model).unlink(missing_ok=True)
    if task.config.kind == "vision" and not engine.sees:
        return
    begin = time.perf_counter()
    columns = score_items(task, engine, f"{model}: {task.config.name}")
    write_items(out_dir, task.config.name, model, columns)
    mean = sum(columns["score"]) / sum(columns["weight"])
    unit = "nats per token" if task.config.type == "perplexity" else "accuracy"
    seconds = time.perf_counter() - begin
    log.info("%s: %s: %.4f %s, %d items, %.1f s", model, task.config.name, mean, unit, len(task.items), seconds)
