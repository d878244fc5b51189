"""MLflow: the whole configuration, every metric by step, manifest, plots, samples and evaluation of a run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from lingu_ray.config import Config
from lingu_ray.errors import UserError
from lingu_ray.runtime.folder import RunFolder, write_json
from lingu_ray.runtime.metrics import NewestSteps, Record

_PARAM_LIMIT = 6000


def tracking_uri(config: Config) -> str:
    """The store of the settings; by default SQLite under `output_dir`."""
    return config.tracking.uri or f"sqlite:///{config.output_dir.resolve() / 'mlflow.db'}"


def artifact_location(uri: str) -> str | None:
    """Where a new experiment's files go: beside a SQLite store (MLflow's own default is the current directory)."""
    if not uri.startswith("sqlite:///"):
        return None  # a server knows its place
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()


class Tracker:
    """One MLflow run, written by the driver. A run that goes on writes into the same MLflow run again."""

    def __init__(self, config: Config, folder: RunFolder):
        self.folder = folder
        uri = tracking_uri(config)
        try:
            self.client = mlflow.MlflowClient(uri)
            earlier = self._earlier_run(uri)
            self.run_id = earlier or self._new_run(config, uri)
            self.client.update_run(self.run_id, status="RUNNING")
        except MlflowException as error:
            raise UserError(f"tracking.uri={uri}: MLflow cannot open it. {error}") from error
        write_json(folder.mlflow, {"uri": uri, "run_id": self.run_id})
        self.monitor = None
        if config.tracking.system_metrics:
            self.monitor = SystemMetricsMonitor(self.run_id, resume_logging=earlier is not None, tracking_uri=uri)
            self.monitor.start()

    def log(self, records: list[Record]) -> None:
        """Every metric of the records."""
        metrics = [
            Metric(name, value, int(record["time"] * 1000), record["step"])
            for record in records
            for name, value in _flat(record)
        ]
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + 1000])

    def newest_steps(self) -> NewestSteps:
        """Up to where the store has this run's metrics."""
        return NewestSteps(self._last_step("loss"), self._last_step("validation_ce"))

    def log_summary(self, figures: dict[str, float | None]) -> None:
        """Figures of the whole run, such as recovery and retention."""
        metrics = [Metric(n, float(v), int(time.time() * 1000), 0) for n, v in figures.items() if v is not None]
        self.client.log_batch(self.run_id, metrics=metrics)

    def log_files(self, *paths: Path) -> None:
        """Files and folders as artifacts; what is not there is left out."""
        for path in paths:
            if path.is_dir():
                self.client.log_artifacts(self.run_id, str(path), artifact_path=path.name)
            elif path.exists():
                self.client.log_artifact(self.run_id, str(path))

    def rest(self) -> None:
        """Leave the run as it is, RUNNING: it will go on."""
        if self.monitor:
            self.monitor.finish()

    def end(self, status: str) -> None:
        """Close the run: FINISHED, FAILED or KILLED."""
        self.rest()
        self.client.set_terminated(self.run_id, status)

    def _new_run(self, config: Config, uri: str) -> str:
        experiment_id = find_experiment(self.client, config.tracking.experiment, uri)
        run = self.client.create_run(experiment_id, run_name=config.name, tags=config.tracking.tags)
        log_params(self.client, run.info.run_id, config.model_dump(mode="json"))
        return run.info.run_id

    def _earlier_run(self, uri: str) -> str | None:
        if not self.folder.mlflow.exists():
            return None
        earlier = json.loads(self.folder.mlflow.read_text())
        if earlier["uri"] != uri:
            return None
        try:
            return self.client.get_run(earlier["run_id"]).info.run_id
        except MlflowException:
            return None  # the store was emptied since: a new run is begun

    def _last_step(self, name: str) -> int:
        history = self.client.get_metric_history(self.run_id, name)
        return max((metric.step for metric in history), default=0)


def find_experiment(client: mlflow.MlflowClient, name: str, uri: str) -> str:
    """Id of the experiment, which is made where there is none."""
    experiment = client.get_experiment_by_name(name)
    return experiment.experiment_id if experiment else client.create_experiment(name, artifact_location(uri))


def log_params(client: mlflow.MlflowClient, run_id: str, settings: dict[str, Any]) -> None:
    """A tree of settings as the run's parameters, by dotted key."""
    params = [Param(name, str(value)[:_PARAM_LIMIT]) for name, value in dotted(settings)]
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])


def _flat(record: Record) -> Iterator[tuple[str, float]]:
    """Named numbers of a record; validation by source becomes `validation_ce.<source>`."""
    for name, value in record.items():
        if name == "validation":
            yield from ((f"validation_ce.{source}", entry["ce"]) for source, entry in value.items())
        elif name not in ("step", "time") and value is not None:
            yield name, float(value)


def dotted(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a tree of settings with its dotted key; list items by position."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if items is None or not tree:
        yield prefix, tree
        return
    for name, value in items:
        yield from dotted(value, f"{prefix}.{name}" if prefix else str(name))
