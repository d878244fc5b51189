"""MLflow: settings, environment, metrics by step, manifest, plots, samples and evaluation of a run."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self, TypeVar, cast

import mlflow
import ray
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.git_utils import get_git_commit
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_PARENT_RUN_ID, MLFLOW_SOURCE_NAME, MLFLOW_USER
from sqlalchemy.exc import SQLAlchemyError

from lingu_ray import paths
from lingu_ray.atomic import write_json
from lingu_ray.config import Config, TrackingConfig
from lingu_ray.config.flat import flat, without_credentials
from lingu_ray.errors import Interrupted, UserError
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.records import LoggedSteps, Record, RecordReader, named_numbers
from lingu_ray.runtime.tracking.also import open_also
from lingu_ray.runtime.tracking.delivery import Delivery
from lingu_ray.runtime.tracking.sqlite_store import PREFIX as SQLITE
from lingu_ray.runtime.tracking.sqlite_store import opened_alone, try_database
from lingu_ray.shell import shell_word

log = logging.getLogger(__name__)

T = TypeVar("T")
STORE = "mlflow.db"
_PARAM_LIMIT = 6000
_LAST_CALL_S = 30.0
_BATCH = 100
"""Parameters or tags that MLflow takes at a time."""
_RESUMED = "resumed."
_REMOVED = "–"
_CANNOT_OPEN = (MlflowException, SQLAlchemyError, OSError, ImportError)  # a bad address, file, or missing driver
_GONE = ErrorCode.Name(RESOURCE_DOES_NOT_EXIST)
_ROW_EXISTS = ("RESOURCE_ALREADY_EXISTS", "BAD_REQUEST")  # where two make the same experiment, or tag
_NOT_ALLOWED = ("UNAUTHENTICATED", "PERMISSION_DENIED")
NEWEST_START = "lingu_ray.newest_start"
"""Tag of an experiment: when a run of it was last started."""
COMMAND = "command"
"""Tag of the full command: of `mlflow.source.name` MLflow's pages show only what follows the last slash."""
_ORIGIN = ("mlflow.source.", MLFLOW_USER, COMMAND)
_SECRET_KEY = re.compile(r"token|secret|passw|credential|api_?key", re.IGNORECASE)


def store_uri(settings: TrackingConfig, folder: Path | str) -> str:
    """The store of the settings, else that of the environment, else SQLite in `folder`.

    Raises:
        UserError: none is named, and `folder` is in a bucket, where no database can be.
    """
    named = settings.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if named is None and isinstance(folder, str):
        raise UserError(
            f"tracking.uri is needed, for results go to {folder}, and MLflow's own database wants a disk: give "
            "tracking.uri=http://… of a server (or MLFLOW_TRACKING_URI), or tracking.uri=sqlite:////PATH of a file"
        )
    return paths.tracking_uri(named or f"sqlite:///{Path(folder) / STORE}")


def tracking_uri(config: Config) -> str:
    """The store of a run (see `store_uri`)."""
    return store_uri(config.tracking, config.output_dir)


def where_to_look(uri: str) -> str:
    """How to open the store: a server's address, or the command that serves a database."""
    shown = without_credentials(uri)
    return shown if uri.startswith(("http://", "https://")) else f"mlflow ui --backend-store-uri {shell_word(shown)}"


def artifact_location(uri: str) -> str | None:
    """Where a new experiment's files go: beside a SQLite store (MLflow's own default is the current directory)."""
    if not uri.startswith(SQLITE):
        return None  # a server knows its place
    return (Path(uri.removeprefix(SQLITE)).resolve().parent / "mlartifacts").as_uri()


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
        self.uri = uri
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
        except _CANNOT_OPEN as error:
            raise _not_opened(uri, error) from error
        if pointer.exists() and not self.resumed:
            log.info("%s: no such run in %s; a new one is started", pointer, without_credentials(uri))
        pointer.parent.mkdir(parents=True, exist_ok=True)
        write_json(pointer, {"uri": uri, "run_id": self.run_id})

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
        """Figures without a step, such as recovery and retention; None is left out."""
        now = int(time.time() * 1000)
        self.log_metrics([Metric(name, float(value), now, 0) for name, value in figures.items() if value is not None])

    def log_metrics(self, metrics: list[Metric]) -> None:
        """Log any number of metrics."""
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + 1000])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set any number of tags."""
        entries = [RunTag(key, value) for key, value in tags.items()]
        for start in range(0, len(entries), _BATCH):
            self.client.log_batch(self.run_id, tags=entries[start : start + _BATCH])

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

    def pause(self) -> None:
        """Leave the run RUNNING: it will be resumed."""
        if self.monitor:
            self.monitor.finish()

    def end(self, status: str) -> None:
        """Close the run: FINISHED, FAILED or KILLED."""
        self.pause()
        self.client.set_terminated(self.run_id, status)

    def _pointed_to(self, pointer: Path) -> Run | None:
        """The run that the file names; None where there is no file, or the run is in another store, deleted or gone."""
        if not pointer.exists():
            return None
        earlier = json.loads(pointer.read_text())
        return self.find(earlier["run_id"]) if earlier["uri"] == self.uri else None

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
            _experiment(self.client, self.uri, settings.experiment), run_name=settings.run_name or name
        )
        entries = [Param(key, value[:_PARAM_LIMIT]) for key, value in params.items()]
        for start in range(0, len(entries), _BATCH):
            self.client.log_batch(run.info.run_id, params=entries[start : start + _BATCH])
        return run

    def _origin(self, parent: Path | None) -> dict[str, str]:
        """Tags of where the run comes from: its parent, and the command; an actor of Ray has that of the parent."""
        above = None if parent is None else self._pointed_to(RunFolder(parent).mlflow)
        if above is None:
            if parent is not None:
                log.info("tracking.parent=%s: no run of it in %s; not nested", parent, without_credentials(self.uri))
            return source_tags()
        inherited = {key: value for key, value in above.data.tags.items() if key.startswith(_ORIGIN)}
        return {MLFLOW_PARENT_RUN_ID: above.info.run_id} | (inherited if _in_actor() else source_tags())


class Tracker(MlflowRun):
    """A training run in MLflow, written by the driver. Once it is open, a store that fails raises nothing."""

    def __init__(self, config: Config, folder: RunFolder):
        with _one_retry():
            super().__init__(tracking_uri(config), config.tracking, folder.mlflow, config.name, flat(config))
        self.config, self.folder = config, folder
        self.say: Callable[[str], None] = log.warning
        self.deliveries: list[Delivery] = []
        self.reached = True

    def follow(self, say: Callable[[str], None]) -> LoggedSteps:
        """Log the records of metrics.jsonl as they come, here and in the trackers of `tracking.also`, to the run's end.

        `say` tells people what a tracker does not take. Returns the steps that MLflow has already.
        """
        self.say, path, known = say, self.folder.metrics, self.logged_steps()
        self.deliveries = [Delivery("MLflow", path, known, self._deliver, lambda: None, say)]
        for name, also in open_also(self.config, self.folder).items():
            self.deliveries.append(Delivery(name, path, also.logged, also.log, also.close, say))
        return known

    def catch_up(self) -> None:
        """Log the records that MLflow did not take while the run was training."""
        self._attempt(lambda: self.log(RecordReader(self.folder.metrics, self.logged_steps()).new_records()))

    def log_files(self, *paths: Path) -> None:
        """Log files and folders as artifacts; missing ones are left out."""
        self._attempt(lambda: super(Tracker, self).log_files(*paths))

    def pause(self, within_s: float = _LAST_CALL_S) -> None:
        """Leave the run RUNNING: it will be resumed. Trackers have `within_s` seconds to take what is left."""
        delivered = [delivery.finish(within_s) for delivery in self.deliveries]
        self.reached = self.reached and all(delivered[:1])
        self.deliveries = []
        if self.reached:  # the monitor waits for its own requests
            super().pause()

    def end(self, status: str, within_s: float = _LAST_CALL_S) -> None:
        """Close the run: FINISHED, FAILED or KILLED. Trackers have `within_s` seconds to take what is left."""
        self.pause(within_s)
        if self.reached:
            self._attempt(lambda: self.client.set_terminated(self.run_id, status))

    def _deliver(self, records: list[Record]) -> None:
        with _one_retry():
            self.log(records)
        if self.monitor and self.monitor._process and not self.monitor._process.is_alive():
            self.watch_system()  # it has given up while the store did not answer

    def _attempt(self, call: Callable[[], None]) -> None:
        try:
            with _one_retry():
                call()
        except Exception as error:  # whatever MLflow, a database's driver or an HTTP client raises
            self.reached = False
            self.say(
                without_credentials(f"MLflow does not have all of {self.folder.place}; run the command again: {error}")
            )

    def log(self, records: list[Record]) -> None:
        """Log every metric of the records."""
        self.log_metrics(
            [
                Metric(name, value, int(record["time"] * 1000), record["step"])
                for record in records
                for name, value in named_numbers(record)
            ]
        )

    def logged_steps(self) -> LoggedSteps:
        """The newest steps of which the store has this run's metrics."""
        return LoggedSteps(self._last_step("loss"), self._last_step("validation_ce"))

    def _last_step(self, name: str) -> int:
        history = self.client.get_metric_history(self.run_id, name)
        return max((metric.step for metric in history), default=0)


def check_store(uri: str, experiment: str) -> None:
    """Write to the store and where its experiment keeps files, before anything expensive starts.

    The experiment is made where there is none. In a SQLite file that is not there yet MLflow's own tables are not
    made: that takes seconds.

    Raises:
        UserError: it does not answer, cannot be opened or written, or the experiment was deleted.
    """
    try:
        if uri.startswith("sqlite:") and not uri.startswith(SQLITE):
            raise UserError(f"tracking.uri={uri}: a SQLite store is a file: {SQLITE}FOLDER/{STORE}")
        if uri.startswith(SQLITE) and not try_database(Path(uri.removeprefix(SQLITE))):
            location = cast(str, artifact_location(uri))
        else:
            with _one_retry():
                location = _try_experiment(open_store(uri), uri, experiment)
    except UserError:
        raise
    except Exception as error:  # whatever MLflow, a database's driver or an HTTP client raises
        raise _not_opened(uri, error) from error
    try:
        with _one_retry():
            _try_files(uri, location)
    except Exception as error:
        raise UserError(
            without_credentials(
                f"tracking.uri={uri}: files of the experiment {experiment} cannot be stored in {location}: "
                f"{type(error).__name__}: {error}. Correct access to it, or name another tracking.experiment"
            )
        ) from error


def _try_experiment(client: mlflow.MlflowClient, uri: str, name: str) -> str:
    """Write a tag of the experiment, as a server allows it only to those who may log runs; returns its files' place."""
    found = _experiment(client, uri, name)
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    _among_others(lambda: client.set_experiment_tag(found, NEWEST_START, now))
    return client.get_experiment(found).artifact_location


def _try_files(uri: str, location: str) -> None:
    """Store a small file, as reports are stored at the end, and delete it where that is allowed."""
    with TemporaryDirectory() as folder:
        tried = Path(folder, f"tried-{secrets.token_hex(4)}.txt")
        tried.write_text("Stored before a run to see whether its files can be; it may be deleted.\n")
        repository = get_artifact_repository(location, tracking_uri=uri)
        repository.log_artifact(str(tried))
        try:
            repository.delete_artifacts(tried.name)
        except Exception as error:  # each store has its own, and many let nobody delete
            log.debug("%s stays in %s: %s", tried.name, location, error)


@contextmanager
def _one_retry() -> Iterator[None]:
    """Ask a server that does not answer twice, not for minutes, unless the environment says how often."""
    if MLFLOW_HTTP_REQUEST_MAX_RETRIES.is_set():
        yield
        return
    MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(1)
    try:
        yield
    finally:
        MLFLOW_HTTP_REQUEST_MAX_RETRIES.unset()


def _not_opened(uri: str, error: Exception) -> UserError:
    said = f"{str(error).strip().rstrip('.')}. {_cure(uri, error)}".strip()
    return UserError(without_credentials(f"tracking.uri={uri}: MLflow cannot open it. {said}"))


def _cure(uri: str, error: Exception) -> str:
    """What to do about a store that cannot be opened, as far as MLflow's own words do not say it."""
    code = error.error_code if isinstance(error, MlflowException) else None
    if code in _NOT_ALLOWED:
        return "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, of who may write"
    if isinstance(error, ImportError):
        return f"Install the database's driver, which has the module {error.name}"
    if uri.startswith(("http://", "https://")):
        return "Give the address of a running MLflow server, or leave tracking.uri out for a file in output_dir"
    return ""


def open_store(uri: str) -> mlflow.MlflowClient:
    """MLflow's client of a store, whose tables are made where there are none."""
    with opened_alone(uri):
        return mlflow.MlflowClient(uri)


def _among_others(call: Callable[[], T]) -> T:
    """Make a call that finds or writes a row, again where another process made that row at the same moment."""
    try:
        return call()
    except MlflowException as error:
        if error.error_code not in _ROW_EXISTS:
            raise
    return call()


def _experiment(client: mlflow.MlflowClient, uri: str, name: str) -> str:
    """Id of the experiment, which is made where there is none."""
    return _among_others(lambda: _found_or_made(client, uri, name))


def _found_or_made(client: mlflow.MlflowClient, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        return client.create_experiment(name, artifact_location(uri))
    if found.lifecycle_stage != "active":
        raise UserError(
            f"tracking.experiment={name}: it was deleted in {without_credentials(uri)}; name another, "
            f"or restore it: mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return found.experiment_id


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


def source_tags() -> dict[str, str]:
    """Who ran which command, and the commit of the checkout that it ran in, under MLflow's names."""
    commit = get_git_commit(os.getcwd())
    tags = {MLFLOW_SOURCE_NAME: shlex.join(_program()), COMMAND: command_line()}
    return resolve_tags(tags | ({MLFLOW_GIT_COMMIT: commit} if commit else {}))


def command_line() -> str:
    """The command of this process as it is typed, without secrets."""
    return shlex.join([*_program(), *map(_without_secret, sys.argv[1:])])


def _program() -> list[str]:
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return ["python", "-m", module.name.removesuffix(".__main__")] if module else [Path(sys.argv[0]).name]


def _in_actor() -> bool:
    return ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None


def _without_secret(argument: str) -> str:
    key, equals, _ = argument.partition("=")
    return f"{key}=…" if equals and _SECRET_KEY.search(key) else without_credentials(argument)
