"""A SQLite file as MLflow's store.

It is tried before training: written to for real, and what was written taken back. MLflow itself is not asked, since it
takes seconds to make a new store. And one process at a time opens it: two that make a new store's tables both fail.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow

from lingu_ray.atomic import locked, why_unwritable
from lingu_ray.errors import UserError
from lingu_ray.runtime.tracking.store_uri import SQLITE

LOCKED_S = 20.0
"""Seconds to wait for what another process writes; MLflow waits as long."""
_OTHER = "name another file in tracking.uri"
_CURES = {
    "SQLITE_NOTADB": f"it is no database: {_OTHER}",
    "SQLITE_CORRUPT": f"it is damaged: restore it, or {_OTHER}",
    "SQLITE_BUSY": f"another process holds its lock: end that one (fuser FILE shows it), or {_OTHER}; a folder of a "
    "network file system without locks needs an MLflow server instead",
}


@contextmanager
def opened_alone(uri: str) -> Iterator[None]:
    """Hold off other processes that open the same file, where the store is one."""
    path = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE) or not path.parent.is_dir():
        yield
        return
    with locked(path.with_name(f".{path.name}.lock")):
        yield


def try_database(path: Path, setting: str) -> bool:
    """Write to the file, or where it is not there to a new one beside it; returns whether MLflow has tables in it.

    Missing folders are made. `setting`: what names the store, for messages.

    Raises:
        UserError: the file or its folder cannot be written, is locked, is no database, or is one of something else or
            of a newer MLflow.
    """
    where = f"{setting}={SQLITE}{path}"
    if path.is_dir():
        raise UserError(f"{where} is a folder: name a file in it, {SQLITE}{path / 'mlflow.db'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            with opened_alone(f"{SQLITE}{path}"):
                return _try_existing(path, where)
        with TemporaryDirectory(prefix=".tried-", dir=path.parent) as folder, _opened(Path(folder, path.name)) as new:
            _write(new)
    except OSError as error:
        why = why_unwritable(path.parent, error)
        raise UserError(f"{where}: its folder cannot be written ({why}): {_OTHER}") from error
    except sqlite3.Error as error:
        cure = _CURES.get(error.sqlite_errorname, f"make file and folder writable and make room, or {_OTHER}")
        raise UserError(f"{where}: SQLite says '{error}'; {cure}") from error
    return False


def _try_existing(path: Path, where: str) -> bool:
    with _opened(path) as database:
        _write(database)
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            return False
        if "experiments" not in tables:
            raise UserError(
                f"{where}: this database is not MLflow's (tables {', '.join(sorted(tables)[:3])}): {_OTHER}"
            )
        versions = database.execute("SELECT version_num FROM alembic_version") if "alembic_version" in tables else []
        for (version,) in versions:
            _check_version(version, where)
    return True


def _opened(path: Path) -> closing[sqlite3.Connection]:
    return closing(sqlite3.connect(path, timeout=LOCKED_S, isolation_level=None))


def _write(database: sqlite3.Connection) -> None:
    """Take the lock, write a table, and take it back."""
    database.execute("BEGIN IMMEDIATE")
    database.execute("CREATE TABLE lingu_ray_tried (x)")
    database.execute("ROLLBACK")


def _check_version(version: str, where: str) -> None:
    """Refuse the schema of a newer MLflow, of which the installed one says that it is out of date."""
    from alembic.script import ScriptDirectory  # takes a while, and MLflow imports it only to open a store
    from alembic.util import CommandError

    migrations = Path(mlflow.__file__).parent / "store" / "db_migrations"
    try:
        ScriptDirectory(str(migrations)).get_revision(version)
    except CommandError as error:
        raise UserError(
            f"{where}: a newer MLflow than {mlflow.__version__} made it (its schema is {version}): "
            f"install that one, or {_OTHER}"
        ) from error
