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
from lingu_ray.errors import Interrupted, UserError
from lingu_ray.evaluation.engines.load import check_weights, identity_of, takes_images
from lingu_ray.evaluation.engines.vllm_engine import obvious_reason
from lingu_ray.evaluation.item_files import Stamp, asked_by, items_path, stamps_of
from lingu_ray.evaluation.levels import unmeasured
from lingu_ray.evaluation.measure import TaskRun, run_task
from lingu_ray.evaluation.recovery import summarize
from lingu_ray.evaluation.replicas import Hardware, Replicas
from lingu_ray.evaluation.results import Recovery
from lingu_ray.evaluation.tasks.load import load_tasks
from lingu_ray.evaluation.tasks.task import Task
from lingu_ray.runtime.cluster.connect import connect
from lingu_ray.runtime.tracking.environment import record_environment
from lingu_ray.waiting import RAY_STATUS, waiting

log = logging.getLogger(__name__)

ENGINES = ("vllm", "transformers")
"""Those of `evaluation.engine=auto`, the preferred one first."""

Runs = dict[str, list[TaskRun]]
"""By model."""


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
    the same models with the same engine, is not measured again; an interrupted evaluation resumes. All models are
    measured by one engine.

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
    runs = _runs(models, load_tasks(settings), engines_for(settings, measured, out_dir), settings.precision, out_dir)
    _check_all_taken(settings, next(iter(runs.values())), [*measured, *models], out_dir)
    if not any(_all_finished(of_engine) for of_engine in runs.values()):
        for path in models.values():
            check_weights(path)
        connect(ray_settings or RayConfig())
        record_environment(out_dir)
        hardware = Hardware.of(settings, ray_settings or RayConfig(), sharers)
        engine = _chosen_engine(runs, models, hardware)
        _measure(runs[engine], models, engine, settings, hardware)
    return summarize(out_dir, [*measured, *models], settings)


def _runs(
    models: dict[str, Path], tasks: list[Task], engines: Sequence[str], precision: str, out_dir: Path
) -> dict[str, Runs]:
    """Every task on every model that can take it, as each of the engines would run it."""
    asked = [task.asked for task in tasks]
    runs: dict[str, Runs] = {engine: {} for engine in engines}
    for name, path in models.items():
        can_see, identity = takes_images(path), identity_of(path)
        for task, of_task in zip(tasks, asked, strict=True):
            if task.config.kind == "vision" and not can_see:
                items_path(out_dir, task.config.name, name).unlink(missing_ok=True)  # of another model of its name
                continue
            for engine in engines:
                stamp = Stamp(of_task, _by(engine, precision), identity, asked_by(task.config))
                runs[engine].setdefault(name, []).append(TaskRun(task, stamp, name, out_dir))
    return runs


def _check_all_taken(settings: EvaluationConfig, taken: Runs, models: Sequence[str], out_dir: Path) -> None:
    """Raise UserError where a task is, or will be, measured on none of the models, as on text-only ones."""
    names = {run.task.config.name for of_model in taken.values() for run in of_model}
    for config in settings.tasks:
        if config.name not in names and not any(items_path(out_dir, config.name, model).exists() for model in models):
            raise unmeasured(config, models)


def _by(engine: str, precision: str) -> str:
    return f"{engine}, {precision}"


def _all_finished(runs: Runs) -> bool:
    return all(run.finished for of_model in runs.values() for run in of_model)


def engines_for(settings: EvaluationConfig, measured: Sequence[str], out_dir: Path) -> Sequence[str]:
    """The engines that may measure beside what was measured already: those of the settings, if it was by the same.

    Raises:
        UserError: it was not.
    """
    engines = ENGINES if settings.engine == "auto" else [settings.engine]
    theirs = {stamp.engine for name in measured for stamp in stamps_of(out_dir, settings, name).values()}
    same = [engine for engine in engines if theirs <= {_by(engine, settings.precision)}]
    if not same:
        raise UserError(
            f"{', '.join(measured)} were measured by {' and '.join(sorted(theirs))}, not with evaluation.engine="
            f"{settings.engine} and evaluation.precision={settings.precision}: set those, or measure all again"
        )
    return same


def _measure(runs: Runs, models: dict[str, Path], engine: str, settings: EvaluationConfig, hardware: Hardware) -> None:
    """Load the models one after another, or `models_at_once` side by side, and run their unfinished tasks."""
    unfinished = {name: left for name in runs if (left := [run for run in runs[name] if not run.finished])}
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


def _chosen_engine(runs: dict[str, Runs], models: dict[str, Path], hardware: Hardware) -> str:
    """One engine for all models, so that they are measured alike: vLLM where it may and can serve all of them.

    What Transformers has begun, it ends: vLLM is not tried then, unless it has answered some, too.

    Raises:
        UserError: only vLLM may, and it cannot serve one.
    """
    begun = {engine for engine in runs if any(run.begun for of_model in runs[engine].values() for run in of_model)}
    if "vllm" not in runs or ("transformers" in runs and begun == {"transformers"}):
        return "transformers"
    # vLLM changes the process that imports it
    ask: Any = ray.remote(max_calls=1)(_unsupported_reasons)
    paths = [models[name] for name in runs["vllm"]]
    with waiting("whether vLLM can serve the models", RAY_STATUS):
        found = ray.get(ask.options(**hardware.options()).remote([str(path) for path in paths]))
    reasons = [f"{path}: {reason}" for path, reason in zip(paths, found, strict=True) if reason]
    if reasons and "transformers" not in runs:
        raise _not_served(reasons)
    if reasons:
        again = "; what vLLM has measured is measured again" if "vllm" in begun else ""
        log.info("evaluating with Transformers: vLLM cannot serve %s%s", reasons[0], again)
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
