"""Runs that are compared, as a folder, a bucket or MLflow has them."""

from __future__ import annotations

import math
import posixpath
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow

from lingu_ray import storage
from lingu_ray.config import Config, TrackingConfig
from lingu_ray.config.command_line import read_recipe
from lingu_ray.config.flat import flat, without_credentials
from lingu_ray.errors import UserError
from lingu_ray.evaluation.recovery_json import read_recovery
from lingu_ray.evaluation.results import Interval, Recovery
from lingu_ray.evaluation.roles import trained_role
from lingu_ray.evaluation.tracking import (
    ASKED,
    ENGINE,
    FORMULA,
    VERDICT,
    figure_name,
    figures_of,
    origins_of,
    task_of,
)
from lingu_ray.runtime.controls import FOLDER, run_of_control
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.records import read_records
from lingu_ray.runtime.run_folder.run_store import fetch_run
from lingu_ray.runtime.tracking.environment import read_environment
from lingu_ray.runtime.tracking.mlflow_run import newest_settings, runs_in
from lingu_ray.runtime.tracking.store import CANNOT_OPEN, one_retry, open_store
from lingu_ray.runtime.tracking.store_uri import store_uri
from tuning.curves import CURVES, Curves, curves_of
from tuning.folder import SweepFolder

MEANS = ("recovery", "retention")
TRAINING = ("step", "validation_ce", "loss", "ce", "kd", "tokens_per_s")


@dataclass(frozen=True)
class Compared:
    """One run: flat settings, last value of each metric, curves as (steps, values), and its verdict if it has one.

    `asked`: fingerprint of the items that its model was asked, `engines`: what asked them, both by task;
    `formulas`: how its means are computed, by their names. Of a folder's means and scores, by the names of their
    metrics, `intervals`, and those that are `shares` of what can be reached: MLflow has neither.
    """

    name: str
    settings: dict[str, str]
    metrics: dict[str, float]
    curves: Curves = field(default_factory=dict)
    verdict: str | None = None
    asked: dict[str, str] = field(default_factory=dict)
    engines: dict[str, str] = field(default_factory=dict)
    formulas: dict[str, str] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    shares: frozenset[str] = frozenset()


def read_folder(path: Path) -> Compared:
    """A run's folder."""
    folder = RunFolder(path)
    if not folder.config.exists():
        trials = SweepFolder(path).trials
        cure = f"; a sweep does, whose runs are {trials}/*" if trials.is_dir() else ""
        raise UserError(f"{path}: no run lies there (no config.yaml){cure}")
    recorded = read_recipe(str(folder.config))
    config = recorded.as_recorded()
    settings = flat(config)
    if removed := recorded.removed():
        settings |= flat(removed)
    settings |= _versions({f"environment.{key}": value for key, value in read_environment(path).items()})
    records = read_records(folder.metrics)
    last = {name: record[name] for record in records for name in TRAINING if record.get(name) is not None}
    own, curves = read_recovery(folder.report), curves_of(records)
    verdict = own.verdict.text if own else None
    if (measured := _measured(folder, config, own)) is None:
        return Compared(str(path), settings, last, curves, verdict)
    metrics = last | figures_of(*measured)
    asked, engines, formulas = origins_of(*measured).values()
    how = (asked, engines, formulas, _intervals(*measured), _shares(measured[0]))
    return Compared(str(path), settings, metrics, curves, verdict, *how)


def _intervals(result: Recovery, model: str) -> dict[str, Interval]:
    """Those of the model's means and scores, by metric."""
    means = result.models.get(model)
    found = {name: mean.ci for name, mean in (means.items() if means else ()) if mean is not None}
    tasks = {name: task.models[model] for name, task in result.tasks.items() if model in task.models}
    return found | {figure_name(name): one.score.ci for name, one in tasks.items()}


def _shares(result: Recovery) -> frozenset[str]:
    return frozenset(figure_name(name) for name, task in result.tasks.items() if task.is_share)


def read_place(run: Path | str) -> Compared:
    """A run's folder, or location: by a copy of all but its weights; of a control with the run that it is beside."""
    if isinstance(run, Path):
        return read_folder(run)
    above = storage.join(run, "..", "..")
    whole = above if run == storage.join(above, FOLDER, posixpath.basename(run)) else run
    with TemporaryDirectory() as copy:
        fetch_run(whole, Path(copy))
        return replace(read_folder(Path(copy, run.removeprefix(whole).strip("/"))), name=run)


def _measured(folder: RunFolder, config: Config, own: Recovery | None) -> tuple[Recovery, str] | None:
    """The result that has the run's model, and its name there: a control's stands in the report of its run."""
    if own:
        return own, own.own_model(trained_role(config))
    run = run_of_control(folder.root)
    above = read_recovery(RunFolder(run).report) if run else None
    return (above, trained_role(config)) if above else None


def read_store(ids: list[str], uri: str | None, experiment: str | None, limit: int) -> list[Compared]:
    """Runs of an MLflow store by id, and the newest ones of an experiment; `uri` None: the store of the environment.

    Raises:
        UserError: there is no such store, run or experiment, or the store does not answer.
    """
    uri = uri or store_uri(TrackingConfig(), Path("runs"))
    shown = without_credentials(uri)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        sought = ", ".join(ids) or f"experiment={experiment}"
        raise UserError(f"uri={shown}: no such MLflow store, in which {sought} would be; a folder is named by its path")
    try:
        with one_retry():
            client = open_store(uri)
            runs = [client.get_run(run_id) for run_id in ids]
            if experiment:
                found = client.get_experiment_by_name(experiment)
                if found is None:
                    known = ", ".join(one.name for one in client.search_experiments())
                    raise UserError(f"experiment={experiment}: {shown} has {known or 'no experiments'}")
                runs += islice(filter(_has_model, runs_in(client, found.experiment_id)), limit)
            return [_from_run(client, run) for run in runs]
    except CANNOT_OPEN as error:
        raise UserError(without_credentials(f"uri={uri}: {error}")) from error


def _from_run(client: mlflow.MlflowClient, run: Any) -> Compared:
    curves = {}
    for name in CURVES:
        points = sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name))
        if points:
            curves[name] = ([step for step, _ in points], [value for _, value in points])
    tags = run.data.tags
    asked, engines, formulas = (
        {tag.removeprefix(begin): value for tag, value in tags.items() if tag.startswith(begin)}
        for begin in (ASKED, ENGINE, FORMULA)
    )
    if settings := newest_settings(run):
        settings |= _versions(tags)
    metrics = {name: value for name, value in run.data.metrics.items() if name in TRAINING or not math.isnan(value)}
    if curves:
        metrics["step"] = max(step for steps, _ in curves.values() for step in steps)
    return Compared(run.info.run_name, settings, metrics, curves, tags.get(VERDICT), asked, engines, formulas)


def _versions(environment: dict[str, str]) -> dict[str, str]:
    """What a run was made by, of all that is known of its environment: it may be what makes two runs differ.

    Commits that leave the package as it is do not.
    """
    names = (f"environment.{name}" for name in ("lingu_ray", "git.tree", "git.dirty", "torch", "transformers"))
    return {name: environment[name] for name in names if name in environment}


def _has_model(run: Any) -> bool:
    """Whether a run trained or measured a model: the run that a sweep's trials are nested under did not."""
    return "train.steps" in run.data.params or any(task_of(name) for name in run.data.metrics)
