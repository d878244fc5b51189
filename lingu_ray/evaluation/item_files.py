"""Answered items on disk, a parquet file per task and model: metrics are computed from them without a model.

A task that is answered in part has a folder with a file per chunk instead, so that an interrupted evaluation resumes at
its first missing chunk. Every file has a stamp: what was asked of which model, and how.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lingu_ray.atomic import whole_file
from lingu_ray.config import EvaluationConfig, TaskConfig
from lingu_ray.config.evaluation import ANSWERED_FIELDS, CLUSTER, FIELDS
from lingu_ray.errors import UserError
from lingu_ray.evaluation.metrics.metric import Columns
from lingu_ray.evaluation.roles import in_order
from lingu_ray.evaluation.tasks.blind import blind_name

SAMPLE = "sample"
"""A column beside those of `Columns`: what the first items asked, readable by people; null in the others."""

CUT_TO = "cut_to"
"""The column of `Score.cut_to`; files of earlier versions have none."""

CUT_OFF = "cut_off"
"""The column of `Answer.cut_off`; files of earlier versions have none."""

ANSWER_COLUMNS = frozenset(("logliks", "tokens", "greedy", CUT_TO, "prediction", CUT_OFF, SAMPLE, CLUSTER))
"""Columns that are not the same for all models of a task, or not where it is asked without its images.

`CLUSTER`: what items share that are drawn together (`bootstrap.summed`), by default their images, or question and
right answer; files of earlier versions may have none.
"""

_STAMP = b"lingu_ray"


@dataclass(frozen=True)
class Stamp:
    """What answers depend on. Those with another stamp are of no use.

    `asked`: fingerprint of all that was asked; `engine`: which one answered, and its precision; `model`: its identity.
    `settings`: the task's, of `asked_by`.
    """

    asked: str
    engine: str
    model: str
    settings: dict[str, Any] = field(compare=False)


def asked_by(config: TaskConfig) -> dict[str, Any]:
    """The settings of a task that answers depend on, as JSON: all but how they are judged, and where the data lies.

    Of lm-evaluation-harness the path is which task it is. Types that ask for the same fields judge the same answers.
    """
    elsewhere = set() if config.type == "lm_eval" else {"path"}
    settings = config.model_dump(mode="json", exclude={"name", "type", "metric", "in_mean"} | elsewhere)
    return settings | {"kind of items": ", ".join(FIELDS.get((config.kind, config.type), ANSWERED_FIELDS))}


def check_settings(out_dir: Path, settings: EvaluationConfig, models: list[str]) -> None:
    """Check that the models, which are not asked again, were asked what the settings ask, without images, too.

    Raises:
        UserError: a task's settings are not those that a model was measured with.
    """
    for config in settings.tasks:
        now = asked_by(config)
        for model, name in itertools.product(models, _names(config, settings)):
            stamp = stamp_of(items_path(out_dir, name, model))
            before = now if stamp is None else stamp.settings
            if changed := [key for key in now if key in before and before[key] != now[key]]:
                raise UserError(
                    f"tasks.{config.name}: {model} was measured with another {' and '.join(changed)} "
                    f"({', '.join(f'{key}: {before[key]!r}' for key in changed)}): set it back, or name the models, "
                    "which are measured again then"
                )


def stamps_of(out_dir: Path, settings: EvaluationConfig, model: str) -> dict[str, Stamp]:
    """The stamps of the model's items, by task, those without images under their own name (`blind_name`)."""
    names = [name for config in settings.tasks for name in _names(config, settings)]
    return {name: stamp for name in names if (stamp := stamp_of(items_path(out_dir, name, model))) is not None}


def _names(config: TaskConfig, settings: EvaluationConfig) -> list[str]:
    return [config.name, *([blind_name(config.name)] if settings.blind else [])]


def check_one_model(out_dir: Path, settings: EvaluationConfig, model: str) -> None:
    """Check that the same model answered all tasks under this name.

    Raises:
        UserError: another one did, such as an earlier training's.
    """
    answered: dict[str, str] = {}
    for task, stamp in stamps_of(out_dir, settings, model).items():
        answered.setdefault(stamp.model, task)
    if len(answered) > 1:
        raise UserError(
            f"evaluation.tasks: {' and '.join(answered.values())} were answered by different models of the name "
            f"{model}: name the model, and it is measured again"
        )


def items_path(out_dir: Path, task: str, model: str) -> Path:
    """Path of the items of a task and model."""
    return out_dir / "items" / f"{task}.{model}.parquet"


def write_items(path: Path, columns: Columns, stamp: Stamp | None) -> None:
    """Write one file atomically; without a stamp it is made-up."""
    table = pa.table(columns).replace_schema_metadata({_STAMP: json.dumps(asdict(stamp))} if stamp else None)
    with whole_file(path) as temporary:
        pq.write_table(table, temporary)


def stamp_of(path: Path) -> Stamp | None:
    """The stamp of a file; None where there is no such file, or it cannot be read, or an earlier version wrote it."""
    try:
        return Stamp(**json.loads((pq.read_schema(path).metadata or {})[_STAMP]))
    except (OSError, pa.ArrowException, KeyError, TypeError, json.JSONDecodeError):
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
    """The chunks of a task and model that are answered already."""

    def __init__(self, path: Path, stamp: Stamp) -> None:
        """`path` is that of the complete file; the parts are in a folder beside it."""
        self.path, self.stamp = path, stamp
        self.folder = path.with_suffix(".parts")

    def answered(self) -> set[int]:
        """The first item of each chunk that is there with this stamp."""
        return {int(part.stem) for part in self._files() if stamp_of(part) == self.stamp}

    def drop_others(self) -> None:
        """Delete all chunks where one has another stamp."""
        if any(stamp_of(part) != self.stamp for part in self._files()):
            shutil.rmtree(self.folder)

    def write(self, begin: int, columns: Columns) -> None:
        """Write a chunk."""
        write_items(self.folder / f"{begin:09}.parquet", columns, self.stamp)

    def join(self, items: int) -> None:
        """Join all chunks into one file of so many items, and delete them.

        Raises:
            UserError: some are gone: another command, which took this one for dead, has joined them.
        """
        chunks = [read_columns(part) for part in self._files()]
        if (found := sum(len(chunk["item"]) for chunk in chunks)) != items:
            raise UserError(
                f"{self.folder} has answers to {found} of {items} items: another command has taken over this "
                "evaluation; run the same command again when that has ended"
            )
        of_all = [name for name in chunks[0] if all(name in chunk for chunk in chunks)]  # an earlier version had fewer
        columns = {name: [value for chunk in chunks for value in chunk[name]] for name in of_all}
        write_items(self.path, columns, self.stamp)
        shutil.rmtree(self.folder)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))
