"""Which of MLflow's stores is a run's: that of the settings, of the environment, or a file. Brings no MLflow."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

from lingu_ray import paths
from lingu_ray.config import Config, TrackingConfig
from lingu_ray.config.flat import without_credentials
from lingu_ray.errors import UserError
from lingu_ray.shell import shell_word

SQLITE = "sqlite:///"
STORE = "mlflow.db"
VARIABLE = "MLFLOW_TRACKING_URI"


def store_uri(settings: TrackingConfig, folder: Path | str) -> str:
    """The store of the settings, else that of the environment, else SQLite in `folder`.

    Raises:
        UserError: none is named, and `folder` is in a bucket, where no database can be, or no address can name it.
    """
    if named := settings.uri or _of_environment():
        return named
    if isinstance(folder, str):
        raise UserError(
            f"tracking.uri is needed, for results go to {folder}, and MLflow's own database wants a disk: give "
            "tracking.uri=http://… of a server (or MLFLOW_TRACKING_URI), or tracking.uri=sqlite:////PATH of a file"
        )
    uri = paths.tracking_uri(f"{SQLITE}{Path(folder) / STORE}")
    if "?" in uri or unquote(uri) != uri:
        raise UserError(
            f"{folder}: MLflow's database cannot lie there, for a question mark, and % with two digits, stand for "
            "something else in its address: name another folder, or tracking.uri=sqlite:////PATH of a file"
        )
    return uri


def _of_environment() -> str | None:
    """The store that MLflow's own variable names; None where it names none. Raises UserError for a bucket."""
    given = os.environ.get(VARIABLE)
    try:
        return paths.tracking_uri(given) if given else None
    except paths.NoPath as error:
        raise UserError(f"{VARIABLE}: {error}") from error


def named_by(uri: str) -> str:
    """What names a store: the setting, or MLflow's own variable."""
    with suppress(UserError):
        if uri == _of_environment():
            return VARIABLE
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
    return found | {VARIABLE: store} if store else found


def where_to_look(uri: str) -> str:
    """How to open the store: a server's address, or the command that serves a database."""
    shown = without_credentials(uri)
    return shown if uri.startswith(("http://", "https://")) else f"mlflow ui --backend-store-uri {shell_word(shown)}"
