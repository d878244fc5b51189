"""One MLflow run: opened or resumed, its metrics, tags and files."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunData, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils import chunk_list
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from lingu_ray.atomic import read_json, write_json
from lingu_ray.config import TrackingConfig
from lingu_ray.config.flat import without_credentials
from lingu_ray.errors import Interrupted
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.tracking.command import ORIGIN, in_actor, source_tags
from lingu_ray.runtime.tracking.store import CANNOT_OPEN, experiment_id, not_opened, one_retry, open_store
from lingu_ray.runtime.tracking.store_uri import SQLITE
from lingu_ray.storage import origin

_PARAM_LIMIT = 6000
_BATCH = 100
"""Parameters or tags that MLflow takes at a time."""
_RESUMED = "resumed."
_REMOVED = "–"
_GONE = ErrorCode.Name(RESOURCE_DOES_NOT_EXIST)

log = logging.getLogger(__name__)


class MlflowRun:
    """One MLflow run: the one that a file names by store and id, or a new one where that is gone.

    As a context it ends the run: FINISHED, KILLED after an interruption, else FAILED.

    Args:
        uri: the store.
        settings: experiment, run name, parent and tags.
        pointer: the file.
        name: of a new run, unless the settings name it.
        params: settings, which a new run has as parameters; a resumed one has those that changed as tags.

    Raises:
        UserError: the store cannot be opened, or the experiment was deleted.
    """

    def __init__(self, uri: str, settings: TrackingConfig, pointer: Path, name: str, params: Mapping[str, str]):
        self.uri, self.place = uri, origin(pointer.parent)
        self.say: Callable[[str], None] = log.warning
        self.reached = True
        self.monitor: SystemMetricsMonitor | None = None
        try:
            self.client = open_store(uri)
            earlier = self._pointed_to(pointer)
            self.resumed = earlier is not None
            run = earlier or self._new_run(settings, name, params)
            self.run_id, self.experiment_id = run.info.run_id, run.info.experiment_id
            changed = changed_settings(earlier, params) if earlier else {}
            self.set_tags(settings.tags | self._origin(settings.parent) | changed)
            self.client.update_run(self.run_id, status="RUNNING")
        except CANNOT_OPEN as error:
            raise not_opened(uri, error) from error
        if (stays := self._other_experiment(settings)) is not None:
            log.warning(
                "tracking.experiment=%s: the run stays in %s, where it was started, for MLflow moves none; without %s "
                "a new one is started",
                *(settings.experiment, stays, pointer),
            )
        if pointer.exists() and not self.resumed:
            log.info("%s: no such run in %s; a new one is started", pointer, without_credentials(uri))
        pointer.parent.mkdir(parents=True, exist_ok=True)
        write_json(pointer, {"uri": without_credentials(uri), "run_id": self.run_id})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        self.end("FINISHED" if error is None else "KILLED" if stopped else "FAILED")

    def watch_system(self) -> None:
        """Log use of CPU, memory and GPU until the run ends."""
        self.monitor = SystemMetricsMonitor(self.run_id, resume_logging=self.resumed, tracking_uri=self.uri)
        self.monitor.start()

    def log_figures(self, figures: Mapping[str, float | None]) -> None:
        """Figures without a step, such as recovery and retention. None is left out; of one that the run has from before
        it is no number from now on, for MLflow deletes none.
        """
        now, known = int(time.time() * 1000), self.data.metrics if None in figures.values() else {}
        found = {name: math.nan if value is None else float(value) for name, value in figures.items()}
        self.log_metrics([Metric(k, v, now, 0) for k, v in found.items() if not math.isnan(v) or k in known])

    @property
    def data(self) -> RunData:
        """The run's newest metrics, its parameters and its tags."""
        return self.client.get_run(self.run_id).data

    def log_metrics(self, metrics: list[Metric]) -> None:
        """Log any number of metrics."""
        for part in chunk_list(metrics, 1000):
            self.client.log_batch(self.run_id, metrics=part)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set any number of tags."""
        for part in chunk_list([RunTag(key, value) for key, value in tags.items()], _BATCH):
            self.client.log_batch(self.run_id, tags=part)

    def log_environment(self, environment: Mapping[str, str]) -> None:
        """Set the content of `environment.json` as tags `environment.KEY`."""
        self.set_tags({f"environment.{key}": value for key, value in environment.items()})

    def log_files(self, *paths: Path) -> None:
        """Log files and folders as artifacts; missing ones are left out."""
        for path in paths:
            if path.is_dir():
                self.client.log_artifacts(self.run_id, str(path), artifact_path=path.name)
            elif path.exists():
                self.client.log_artifact(self.run_id, str(path))

    def attempt(self, call: Callable[[], None]) -> None:
        """Make a call; a store that fails raises nothing, and people are told what to do (`say`)."""
        try:
            with one_retry():
                call()
        except Exception as error:  # whatever MLflow, a database's driver or an HTTP client raises
            self.reached = False
            self.say(without_credentials(f"MLflow does not have all of {self.place}; run the command again: {error}"))

    def pause(self) -> None:
        """Leave the run RUNNING: it will be resumed."""
        if self.monitor:
            self.monitor.finish()

    def end(self, status: str) -> None:
        """Close the run: FINISHED, FAILED or KILLED."""
        self.pause()
        self.client.set_terminated(self.run_id, status)

    def _other_experiment(self, settings: TrackingConfig) -> str | None:
        """The name of the experiment that the run is in, where it is not that of the settings."""
        name = self.client.get_experiment(self.experiment_id).name
        return None if name == settings.experiment else name

    def _pointed_to(self, pointer: Path) -> Run | None:
        """The run that the file names; None where there is no file, or the run is in another store, deleted or gone."""
        if not pointer.exists():
            return None
        earlier = read_json(pointer, "uri", "run_id")
        same = without_credentials(earlier["uri"]) == without_credentials(self.uri)
        moved = earlier["uri"].startswith(SQLITE) and self.uri.startswith(SQLITE)  # or reached by a link
        return self.find(earlier["run_id"]) if same or moved else None

    def find(self, run_id: str) -> Run | None:
        """Any run of the store; None where it was deleted, or is gone with what the store once held."""
        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == _GONE:
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def _new_run(self, settings: TrackingConfig, name: str, params: Mapping[str, str]) -> Run:
        run = self.client.create_run(
            experiment_id(self.client, self.uri, settings.experiment), run_name=settings.run_name or name
        )
        for part in chunk_list([Param(key, value[:_PARAM_LIMIT]) for key, value in params.items()], _BATCH):
            self.client.log_batch(run.info.run_id, params=part)
        return run

    def _origin(self, parent: Path | None) -> dict[str, str]:
        """Tags of where the run comes from: its parent, and the command; an actor of Ray has that of the parent."""
        above = None if parent is None else self._pointed_to(RunFolder(parent).mlflow)
        if above is None:
            if parent is not None:
                log.info("tracking.parent=%s: no run of it in %s; not nested", parent, without_credentials(self.uri))
            return source_tags()
        inherited = {key: value for key, value in above.data.tags.items() if key.startswith(ORIGIN)}
        return {MLFLOW_PARENT_RUN_ID: above.info.run_id} | (inherited if in_actor() else source_tags())


def runs_in(client: MlflowClient, experiment_id: str, wanted: str = "") -> Iterator[Run]:
    """The runs of an experiment that MLflow's filter `wanted` takes, newest first, page after page."""
    token = None
    while True:
        page = client.search_runs([experiment_id], wanted, page_token=token)
        yield from page
        if not (token := page.token):
            return


def changed_settings(run: Run, params: Mapping[str, str]) -> dict[str, str]:
    """Tags `resumed.KEY` of a resumed run: settings other than its parameters, which MLflow cannot change.

    A setting that changed back, or was removed, has a tag, too: tags hold the newest values.
    """
    known = run.data.params
    now = dict.fromkeys(known, _REMOVED) | {key: value[:_PARAM_LIMIT] for key, value in params.items()}
    tagged = {key for key in now if f"{_RESUMED}{key}" in run.data.tags}
    return {f"{_RESUMED}{key}": value for key, value in now.items() if value != known.get(key) or key in tagged}


def newest_settings(run: Run) -> dict[str, str]:
    """The settings that an MLflow run was last resumed with, or else started with, by dotted key."""
    changed = {k.removeprefix(_RESUMED): v for k, v in run.data.tags.items() if k.startswith(_RESUMED)}
    return {key: value for key, value in (run.data.params | changed).items() if value != _REMOVED}
