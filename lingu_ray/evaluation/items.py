"""Measured items on disk, one parquet file a task and model: the metrics can be made again without a model."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lingu_ray.config import EvaluationConfig
from lingu_ray.errors import UserError
from lingu_ray.evaluation.metrics import Columns

TEACHER, ADAPTED, CE_ONLY, DISTILLED = MODELS = ("teacher", "adapted", "ce_only", "distilled")


def items_path(out_dir: Path, task: str, model: str) -> Path:
    """Where the items of a task and model are kept."""
    return out_dir / "items" / f"{task}.{model}.parquet"


def write_items(out_dir: Path, task: str, model: str, columns: Columns) -> None:
    """Write one file, whole or not at all."""
    path = items_path(out_dir, task, model)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    pq.write_table(pa.table(columns), part)
    part.replace(path)


def measured_models(out_dir: Path, settings: EvaluationConfig) -> list[str]:
    """Models that an earlier evaluation has measured on these tasks: the four of the method first, then by name."""
    tasks = {task.name for task in settings.tasks}
    names = [path.stem.rpartition(".") for path in (out_dir / "items").glob("*.parquet")]
    found = {model for task, _, model in names if task in tasks}
    return [model for model in MODELS if model in found] + sorted(found - set(MODELS))


def read_items(out_dir: Path, task: str, model: str) -> Columns | None:
    """The columns of one file; None where the model was not measured on the task.

    Raises:
        UserError: the file cannot be read.
    """
    path = items_path(out_dir, task, model)
    if not path.exists():
        return None
    try:
        return pq.read_table(path).to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"measured items {path} cannot be read ({error}); delete it and evaluate again") from error
