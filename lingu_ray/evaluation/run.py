"""Evaluate several models on the same tasks."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import ray

from lingu_ray.config import EvaluationConfig, RayConfig
from lingu_ray.content import model_identity
from lingu_ray.errors import Interrupted, UserError
from lingu_ray.evaluation.engines.load import check_weights, takes_images
from lingu_ray.evaluation.engines.vllm_engine import obvious_reason
from lingu_ray.evaluation.item_files import items_path
from lingu_ray.evaluation.measure import TaskRun, describe, run_task
from lingu_ray.evaluation.recovery import summarize
from lingu_ray.evaluation.replicas import Hardware, Replicas
from lingu_ray.evaluation.results import Recovery
from lingu_ray.evaluation.tasks.load import load_tasks
from lingu_ray.runtime.cluster import connect
from lingu_ray.runtime.environment import record_environment
from lingu_ray.storage import local_copy

log = logging.getLogger(__name__)


def evaluate(
    models: dict[str, Path],
    settings: EvaluationConfig,
    out_dir: Path,
    measured: Sequence[str] = (),
    ray_settings: RayConfig | None = None,
    sharers: int = 1,
) -> Recovery:
    """Measure every model (name → folder, hub id or .gguf file) on every task it can take.

    Recovery and retention are computed from the models that are named by their roles (`roles.py`); others are measured
    beside them. A text-only model (the teacher) is measured on the language tasks alone. All items and
    models' configurations are checked before the first model is loaded. What was measured before, by the same tasks on
    the same models, is not measured again; an interrupted evaluation resumes.

    Args:
        models: what to measure.
        settings: tasks, engine, replicas, resamples, thresholds.
        out_dir: gets `items/<task>.<model>.parquet`, `recovery.json`, and `environment.json` of the newest measuring.
        measured: models whose items are in `out_dir` already; they are compared, and not loaded.
        ray_settings: the cluster to join, where Ray is not running yet, and what a replica gets of it.
        sharers: how many evaluations run side by side on this cluster.

    Returns:
        The result, which `recovery.json` has too.

    Raises:
        UserError: no models or tasks, a bad item, a model that cannot be loaded, an engine that dies.
        Interrupted: Ctrl-C; all answers so far are kept.
    """
    if not models or not settings.tasks:
        raise UserError("nothing to evaluate: name at least one model and one of evaluation.tasks")
    for name in models:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise UserError(f"a model's name is of letters, digits, _ and -, found {name!r}")
    tasks = load_tasks(settings)
    described = [describe(task) for task in tasks]
    unfinished: dict[str, list[TaskRun]] = {}
    for name, path in models.items():
        can_see, identity = takes_images(path), model_identity(local_copy(path))
        for task, description in zip(tasks, described, strict=True):
            if task.config.kind == "vision" and not can_see:
                items_path(out_dir, task.config.name, name).unlink(missing_ok=True)  # of another model of its name
                continue
            run = TaskRun(task, description, name, identity, f"{settings.engine}, {settings.precision}", out_dir)
            if not run.finished:
                unfinished.setdefault(name, []).append(run)
    for name in unfinished:
        check_weights(models[name])
    if unfinished:
        _measure(unfinished, models, settings, out_dir, ray_settings or RayConfig(), sharers)
    return summarize(out_dir, [*measured, *models], settings)


def _measure(
    unfinished: dict[str, list[TaskRun]],
    models: dict[str, Path],
    settings: EvaluationConfig,
    out_dir: Path,
    ray_settings: RayConfig,
    sharers: int,
) -> None:
    """Load the models one after another, or `models_at_once` side by side, and run their unfinished tasks."""
    connect(ray_settings)
    record_environment(out_dir)
    hardware = Hardware.of(settings, ray_settings, sharers)
    engine = _chosen_engine(settings, [models[name] for name in unfinished], hardware)

    names = iter(list(unfinished))  # each thread takes the next one
    lanes = [Replicas(engine, settings, hardware) for _ in range(settings.models_at_once)]

    def measure_one_after_another(lane: Replicas) -> None:
        with lane as replicas:
            for name in names:
                replicas.serve(name, models[name])
                for run in unfinished[name]:
                    run_task(run, replicas)

    with ThreadPoolExecutor(settings.models_at_once) as pool:
        running = [pool.submit(measure_one_after_another, lane) for lane in lanes]
        try:
            for one in as_completed(running):
                one.result()
        except BaseException as stop:
            list(names)  # no further model is started
            for lane in lanes:
                lane.close()
            if isinstance(stop, KeyboardInterrupt):
                raise Interrupted("stopped; all answers so far are kept, and the same command resumes") from None
            raise


def _chosen_engine(settings: EvaluationConfig, models: list[Path], hardware: Hardware) -> str:
    """The engine of the settings; `auto` is vLLM where it can serve all models, so that all are measured alike.

    Raises:
        UserError: `vllm`, and it cannot serve one.
    """
    if settings.engine == "transformers":
        return settings.engine
    # vLLM changes the process that imports it
    ask: Any = ray.remote(max_calls=1)(_unsupported_reasons)
    found = ray.get(ask.options(**hardware.options()).remote([str(model) for model in models]))
    reasons = [f"{model}: {reason}" for model, reason in zip(models, found, strict=True) if reason]
    if reasons and settings.engine == "vllm":
        raise _not_served(reasons)
    if reasons:
        log.info("evaluating with Transformers: vLLM cannot serve %s", reasons[0])
    return "transformers" if reasons else "vllm"


def check_engine(settings: EvaluationConfig, models: Sequence[str]) -> None:
    """Raise UserError where `evaluation.engine=vllm` cannot serve one of the models, as far as is told without vLLM."""
    found = [(model, obvious_reason(model)) for model in models]
    reasons = [f"{model}: {reason}" for model, reason in found if reason]
    if reasons and settings.tasks and settings.engine == "vllm":
        raise _not_served(reasons)


def _not_served(reasons: list[str]) -> UserError:
    return UserError(f"evaluation.engine=vllm cannot serve {'; '.join(reasons)}; set evaluation.engine=transformers")


def _unsupported_reasons(models: list[str]) -> list[str | None]:
    from lingu_ray.evaluation.engines.vllm_engine import unsupported_reason

    return [unsupported_reason(model) for model in models]
