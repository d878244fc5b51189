"""Answered items on disk, a parquet file per task and model: metrics are computed from them without a model.

A task that is answered in part has a folder with a file per chunk instead, so that an interrupted evaluation resumes at
its first missing chunk. Every file has the fingerprint of what was asked of which model.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lingu_ray.atomic import whole_file
from lingu_ray.config import EvaluationConfig
from lingu_ray.errors import UserError
from lingu_ray.evaluation.metrics.metric import Columns
from lingu_ray.evaluation.roles import in_order

SAMPLE = "sample"
"""A column beside those of `Columns`: what the first items asked, readable by people; null in the others."""

_FINGERPRINT = b"lingu_ray"


def items_path(out_dir: Path, task: str, model: str) -> Path:
    """Path of the items of a task and model."""
    return out_dir / "items" / f"{task}.{model}.parquet"


def write_items(path: Path, columns: Columns, fingerprint: str) -> None:
    """Write one file atomically."""
    table = pa.table(columns).replace_schema_metadata({_FINGERPRINT: fingerprint})
    with whole_file(path) as temporary:
        pq.write_table(table, temporary)


def fingerprint_of(path: Path) -> str | None:
    """The fingerprint in a file; None where there is no such file, or it cannot be read."""
    try:
        return (pq.read_schema(path).metadata or {}).get(_FINGERPRINT, b"").decode()
    except (OSError, pa.ArrowException):
        return None


def read_items(out_dir: Path, task: str, model: str) -> Columns | None:
    """The columns of one file; None where the model was not measured on the task.

    Raises:
        UserError: the file cannot be read.
    """
    path = items_path(out_dir, task, model)
    return read_columns(path) if path.exists() else None


def first_items(out_dir: Path, task: str, model: str, count: int) -> Columns | None:
    """At most `count` items from the beginning of one file; None where the model was not measured on the task.

    Raises:
        UserError: the file cannot be read.
    """
    path = items_path(out_dir, task, model)
    return _columns(path, lambda: next(pq.ParquetFile(path).iter_batches(count))) if path.exists() else None


def read_columns(path: Path) -> Columns:
    """The columns of a file of items.

    Raises:
        UserError: the file cannot be read.
    """
    return _columns(path, lambda: pq.read_table(path))


def _columns(path: Path, read: Callable[[], pa.Table | pa.RecordBatch]) -> Columns:
    try:
        return read().to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"measured items {path} cannot be read ({error}); delete it and evaluate again") from error


def measured_models(out_dir: Path, settings: EvaluationConfig) -> list[str]:
    """Models that an earlier evaluation has measured on tasks of the settings: the four roles first, then by name."""
    tasks = {task.name for task in settings.tasks}
    names = [path.stem.rpartition(".") for path in (out_dir / "items").glob("*.parquet")]
    found = {model for task, _, model in names if task in tasks}
    return in_order(found)


class Parts:
    """The chunks of a task and model that are answered already; chunks with another fingerprint are deleted."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        """`path` is that of the complete file; the parts are in a folder beside it."""
        self.path, self.fingerprint = path, fingerprint
        self.folder = path.with_suffix(".parts")
        if any(fingerprint_of(part) != fingerprint for part in self._files()):
            shutil.rmtree(self.folder)

    def answered(self) -> set[int]:
        """The first item of each chunk that is there."""
        return {int(part.stem) for part in self._files()}

    def write(self, begin: int, columns: Columns) -> None:
        """Write a chunk."""
        write_items(self.folder / f"{begin:09}.parquet", columns, self.fingerprint)

    def join(self) -> None:
        """Join all chunks into one file, and delete them."""
        chunks = [read_columns(part) for part in self._files()]
        columns = {name: [value for chunk in chunks for value in chunk[name]] for name in chunks[0]}
        write_items(self.path, columns, self.fingerprint)
        shutil.rmtree(self.folder)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))
