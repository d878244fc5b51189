"""Measured items on disk, one parquet file a task and model: the metrics can be made again without a model.

A task that is not answered whole yet has a folder of parts instead, a file a chunk, so that an evaluation that was
interrupted goes on where it was. Both carry the fingerprint of what was asked of which model.
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
"""A column beside those of `Columns`: of the first items, what was asked, for people; null in the others."""

_FINGERPRINT = b"lingu_ray"


def items_path(out_dir: Path, task: str, model: str) -> Path:
    """Where the items of a task and model are kept."""
    return out_dir / "items" / f"{task}.{model}.parquet"


def write_items(path: Path, columns: Columns, fingerprint: str) -> None:
    """Write one file, whole or not at all."""
    table = pa.table(columns).replace_schema_metadata({_FINGERPRINT: fingerprint})
    with whole_file(path) as temporary:
        pq.write_table(table, temporary)


def fingerprint_of(path: Path) -> str | None:
    """What a file's items were measured for; None where there is no such file, or none that can be read."""
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
    """Models that an earlier evaluation has measured on these tasks: the four of the method first, then by name."""
    tasks = {task.name for task in settings.tasks}
    names = [path.stem.rpartition(".") for path in (out_dir / "items").glob("*.parquet")]
    found = {model for task, _, model in names if task in tasks}
    return in_order(found)


class Parts:
    """The chunks of a task and model that are answered already; of another fingerprint they are thrown away."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        """`path` is that of the whole file; the parts lie in a folder beside it."""
        self.path, self.fingerprint = path, fingerprint
        self.folder = path.with_suffix(".parts")
        if any(fingerprint_of(part) != fingerprint for part in self._files()):
            shutil.rmtree(self.folder)

    def begun(self) -> set[int]:
        """First items of the chunks that are there."""
        return {int(part.stem) for part in self._files()}

    def write(self, begin: int, columns: Columns) -> None:
        """Keep a chunk."""
        write_items(self.folder / f"{begin:09}.parquet", columns, self.fingerprint)

    def join(self) -> None:
        """Make one file of all chunks."""
        chunks = [read_columns(part) for part in self._files()]
        columns = {name: [value for chunk in chunks for value in chunk[name]] for name in chunks[0]}
        write_items(self.path, columns, self.fingerprint)
        shutil.rmtree(self.folder)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))
