"""MLflow's store of a run: which one it is, opened, and tried before anything expensive starts."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar, cast

import mlflow
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from sqlalchemy.exc import SQLAlchemyError

from lingu_ray import paths
from lingu_ray.config import Config, TrackingConfig
from lingu_ray.config.flat import without_credentials
from lingu_ray.errors import UserError
from lingu_ray.runtime.tracking.sqlite_store import PREFIX as SQLITE
from lingu_ray.runtime.tracking.sqlite_store import opened_alone, try_database
from lingu_ray.shell import shell_word

T = TypeVar("T")
STORE = "mlflow.db"
_VARIABLE = "MLFLOW_TRACKING_URI"
NEWEST_START = "lingu_ray.newest_start"
"""Tag of an experiment: when a run of it was last started."""
CANNOT_OPEN = (MlflowException, SQLAlchemyError, OSError, ImportError)
"""What MLflow raises of a bad address or file, or a missing driver."""
_ROW_EXISTS = ("RESOURCE_ALREADY_EXISTS", "BAD_REQUEST")  # where two make the same experiment, or tag
_NOT_ALLOWED = ("UNAUTHENTICATED", "PERMISSION_DENIED")

log = logging.getLogger(__name__)


def store_uri(settings: TrackingConfig, folder: Path | str) -> str:
    """The store of the settings, else that of the environment, else SQLite in `folder`.

    Raises:
        UserError: none is named, and `folder` is in a bucket, where no database can be.
    """
    if named := settings.uri or _of_environment():
        return named
    if isinstance(folder, str):
        raise UserError(
            f"tracking.uri is needed, for results go to {folder}, and MLflow's own database wants a disk: give "
            "tracking.uri=http://… of a server (or MLFLOW_TRACKING_URI), or tracking.uri=sqlite:////PATH of a file"
        )
    return paths.tracking_uri(f"{SQLITE}{Path(folder) / STORE}")


def _of_environment() -> str | None:
    """The store that MLflow's own variable names; None where it names none. Raises UserError for a bucket."""
    given = os.environ.get(_VARIABLE)
    try:
        return paths.tracking_uri(given) if given else None
    except paths.NoPath as error:
        raise UserError(f"{_VARIABLE}: {error}") from error


def _named_by(uri: str) -> str:
    """What names a store: the setting, or MLflow's own variable."""
    with suppress(UserError):
        if uri == _of_environment():
            return _VARIABLE
    return "tracking.uri"


def tracking_uri(config: Config) -> str:
    """The store of a run (see `store_uri`)."""
    return store_uri(config.tracking, config.output_dir)


def same_store(config: Config) -> str | None:
    """`tracking.uri` of another run in the same store; None: the environment names it, maybe with a password."""
    return config.tracking.uri or (None if _of_environment() else tracking_uri(config))


def environment() -> dict[str, str]:
    """MLflow's own variables here, for processes elsewhere: which store, wherever they are, and who may write."""
    found = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    store = _of_environment()
    return found | {_VARIABLE: store} if store else found


def where_to_look(uri: str) -> str:
    """How to open the store: a server's address, or the command that serves a database."""
    shown = without_credentials(uri)
    return shown if uri.startswith(("http://", "https://")) else f"mlflow ui --backend-store-uri {shell_word(shown)}"


def artifact_location(uri: str) -> str | None:
    """Where a new experiment's files go: beside a SQLite store (MLflow's own default is the current directory)."""
    if not uri.startswith(SQLITE):
        return None  # a server knows its place
    return (Path(uri.removeprefix(SQLITE)).resolve().parent / "mlartifacts").as_uri()


def open_store(uri: str) -> mlflow.MlflowClient:
    """MLflow's client of a store, whose tables are made where there are none."""
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
            raise UserError(f"{_named_by(uri)}={uri}: a SQLite store is a file: {SQLITE}FOLDER/{STORE}")
        if uri.startswith(SQLITE) and not try_database(Path(uri.removeprefix(SQLITE)), _named_by(uri)):
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
                f"{_named_by(uri)}={uri}: files of the experiment {experiment} cannot be stored in {location}: "
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
    """Ask a server that does not answer twice, not for minutes, unless the environment says how often."""
    if MLFLOW_HTTP_REQUEST_MAX_RETRIES.is_set():
        yield
        return
    MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(1)
    try:
        yield
    finally:
        MLFLOW_HTTP_REQUEST_MAX_RETRIES.unset()


def not_opened(uri: str, error: Exception) -> UserError:
    said = f"{str(error).strip().rstrip('.')}. {_cure(uri, error)}".strip()
    return UserError(without_credentials(f"{_named_by(uri)}={uri}: MLflow cannot open it. {said}"))


def _cure(uri: str, error: Exception) -> str:
    """What to do about a store that cannot be opened, as far as MLflow's own words do not say it."""
    code = error.error_code if isinstance(error, MlflowException) else None
    if code in _NOT_ALLOWED:
        return "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, of who may write"
    if isinstance(error, ImportError):
        return f"Install the database's driver, which has the module {error.name}"
    if uri.startswith(("http://", "https://")):
        without = f"leave {named} out" if (named := _named_by(uri)) != _VARIABLE else f"unset {named}"
        return f"Give the address of a running MLflow server, or {without} for a file in output_dir"
    return ""
