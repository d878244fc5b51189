"""MLflow's store of a run: opened, and tried before anything expensive starts."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar, cast

import mlflow
from mlflow.environment_variables import MLFLOW_ALLOW_FILE_STORE, MLFLOW_HTTP_REQUEST_MAX_RETRIES
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from sqlalchemy.exc import SQLAlchemyError

from lingu_ray.config.flat import without_credentials
from lingu_ray.errors import UserError
from lingu_ray.runtime.tracking.sqlite_store import opened_alone, try_database
from lingu_ray.runtime.tracking.store_uri import SQLITE, STORE, VARIABLE, named_by
from lingu_ray.waiting import waiting

T = TypeVar("T")
NEWEST_START = "lingu_ray.newest_start"
"""Tag of an experiment: when a run of it was last started."""
CANNOT_OPEN = (MlflowException, SQLAlchemyError, OSError, ImportError)
"""What MLflow raises of a bad address or file, or a missing driver."""
_ROW_EXISTS = ("RESOURCE_ALREADY_EXISTS", "BAD_REQUEST")  # where two make the same experiment, or tag
_variable, _asking = threading.Lock(), list[int]()
"""Of `one_retry`: guards MLflow's variable; threads that ask by it now."""
_NOT_ALLOWED = ("UNAUTHENTICATED", "PERMISSION_DENIED")

log = logging.getLogger(__name__)


def artifact_location(uri: str) -> str | None:
    """Where a new experiment's files go: beside a SQLite store (MLflow's own default is the current directory)."""
    if not uri.startswith(SQLITE):
        return None  # a server knows its place
    return (Path(uri.removeprefix(SQLITE)).resolve().parent / "mlartifacts").as_uri()


def open_store(uri: str) -> mlflow.MlflowClient:
    """MLflow's client of a store, whose tables are made where there are none.

    Raises:
        CANNOT_OPEN: it is a folder, which MLflow refuses by a page of its own, or whatever MLflow raises.
    """
    if uri.startswith(("/", "file:")) and not MLFLOW_ALLOW_FILE_STORE.get():
        database = f"{SQLITE}{Path(uri.removeprefix('file://')) / STORE}"
        raise IsADirectoryError(f"A folder of files is no store any more: {database} names a database in it")
    with opened_alone(uri):
        return mlflow.MlflowClient(uri)


def experiment_id(client: mlflow.MlflowClient, uri: str, name: str) -> str:
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


def _among_others(call: Callable[[], T]) -> T:
    """Make a call that finds or writes a row, again where another process made that row at the same moment."""
    try:
        return call()
    except MlflowException as error:
        if error.error_code not in _ROW_EXISTS:
            raise
    return call()


def check_store(uri: str, experiment: str) -> None:
    """Write to the store and where its experiment keeps files, before anything expensive starts.

    The experiment is made where there is none. In a SQLite file that is not there yet MLflow's own tables are not
    made: that takes seconds.

    Raises:
        UserError: it does not answer, cannot be opened or written, or the experiment was deleted.
    """
    try:
        if uri.startswith("sqlite:") and not uri.startswith(SQLITE):
            raise UserError(f"{named_by(uri)}={uri}: a SQLite store is a file: {SQLITE}FOLDER/{STORE}")
        if uri.startswith(SQLITE) and not try_database(Path(uri.removeprefix(SQLITE)), named_by(uri)):
            location = cast(str, artifact_location(uri))
        else:
            with one_retry():
                location = _try_experiment(open_store(uri), uri, experiment)
    except UserError:
        raise
    except Exception as error:  # whatever MLflow, a database's driver or an HTTP client raises
        raise not_opened(uri, error) from error
    try:
        with one_retry():
            _try_files(uri, location)
    except Exception as error:
        raise UserError(
            without_credentials(
                f"{named_by(uri)}={uri}: files of the experiment {experiment} cannot be stored in {location}: "
                f"{type(error).__name__}: {error}. Correct access to it, or name another tracking.experiment"
            )
        ) from error


def _try_experiment(client: mlflow.MlflowClient, uri: str, name: str) -> str:
    """Write a tag of the experiment, as a server allows it only to those who may log runs; returns its files' place."""
    found = experiment_id(client, uri, name)
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    _among_others(lambda: client.set_experiment_tag(found, NEWEST_START, now))
    return client.get_experiment(found).artifact_location


def _try_files(uri: str, location: str) -> None:
    """Store a small file, as reports are stored at the end, and delete it where that is allowed."""
    with TemporaryDirectory() as folder:
        tried = Path(folder, f"tried-{secrets.token_hex(4)}.txt")
        tried.write_text("Stored before a run to see whether its files can be; it may be deleted.\n", encoding="utf-8")
        repository = get_artifact_repository(location, tracking_uri=uri)
        repository.log_artifact(str(tried))
        try:
            repository.delete_artifacts(tried.name)
        except Exception as error:  # each store has its own, and many let nobody delete
            log.debug("%s stays in %s: %s", tried.name, location, error)


@contextmanager
def one_retry() -> Iterator[None]:
    """Ask a server that does not answer twice, not for minutes, unless the environment says how often.

    The variable is that of all threads: the last of those that ask at a time takes it back.
    """
    with _variable:
        ours = bool(_asking) or not MLFLOW_HTTP_REQUEST_MAX_RETRIES.is_set()
        if ours:
            MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(1)
            _asking.append(threading.get_ident())
    try:
        with waiting("MLflow's store to answer", "see whether its server, or the storage of its database, is up"):
            yield
    finally:
        with _variable:
            if ours:
                _asking.pop()
            if ours and not _asking:
                MLFLOW_HTTP_REQUEST_MAX_RETRIES.unset()


def not_opened(uri: str, error: Exception) -> UserError:
    said = f"{str(error).strip().rstrip('.')}. {_cure(uri, error)}".strip()
    return UserError(without_credentials(f"{named_by(uri)}={uri}: MLflow cannot open it. {said}"))


def _cure(uri: str, error: Exception) -> str:
    """What to do about a store that cannot be opened, as far as MLflow's own words do not say it."""
    code = error.error_code if isinstance(error, MlflowException) else None
    if code in _NOT_ALLOWED:
        return "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, of who may write"
    if isinstance(error, ImportError):
        return f"Install the database's driver, which has the module {error.name}"
    if uri.startswith(("http://", "https://")):
        without = f"leave {named} out" if (named := named_by(uri)) != VARIABLE else f"unset {named}"
        return f"Give the address of a running MLflow server, or {without} for a file in output_dir"
    return ""
