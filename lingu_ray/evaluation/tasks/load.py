"""Loading tasks: every item is checked before a model is loaded, and none is skipped."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from lingu_ray.config import EvaluationConfig, TaskConfig
from lingu_ray.corpus.formats import BadRecord
from lingu_ray.errors import UserError
from lingu_ray.evaluation.tasks.blind import blinded
from lingu_ray.evaluation.tasks.fields import fields_of, selected
from lingu_ray.evaluation.tasks.harness import harness_items
from lingu_ray.evaluation.tasks.images import item_images
from lingu_ray.evaluation.tasks.rows import places
from lingu_ray.evaluation.tasks.task import Item, Task
from lingu_ray.evaluation.tasks.task_types import Malformed, asked, check_together, is_scored, scored


def load_tasks(settings: EvaluationConfig) -> list[Task]:
    """Read and check all items of all tasks; with `blind` each vision task is there without its images, too.

    Raises:
        UserError: as `load_task`; a question is nothing but its images.
    """
    tasks = [load_task(config) for config in settings.tasks]
    return tasks + [blinded(task) for task in tasks if settings.blind and task.config.kind == "vision"]


def load_task(config: TaskConfig) -> Task:
    """Read and check all items of a task.

    Raises:
        UserError: there is no data, or fewer items than `limit`; an item is malformed (task, file, row, field).
    """
    items = tuple(islice(harness_items(config) if config.type == "lm_eval" else _items(config), config.limit))
    if not items:
        chosen = f" where {config.where}" if config.where else ""
        raise UserError(f"evaluation.tasks: {config.name}: {config.path} holds no items{chosen}")
    if config.limit is not None and len(items) < config.limit:
        raise UserError(
            f"evaluation.tasks: {config.name}: limit is {config.limit}, but {config.path} holds {len(items)} items; "
            "lower the limit or leave it out"
        )
    try:
        check_together(config, items)
    except Malformed as error:
        raise UserError(f"evaluation.tasks: {config.name}: {config.path}: {error}") from error
    return Task(config, items)


def _items(config: TaskConfig) -> Iterator[Item]:
    for name, place in places(config):
        try:
            record = place.read()
            if config.where and not selected(config.where, record):
                continue
            for turn, fields in enumerate(fields_of(config, record)):
                item = f"{name}.{turn + 1}" if turn else name
                if is_scored(config):
                    yield scored(config, item, fields)
                else:
                    yield asked(config, item, fields, item_images(config, place, turn, fields))
        except (Malformed, BadRecord) as error:
            detail = error.detail if isinstance(error, BadRecord) else error
            raise UserError(f"evaluation.tasks: {config.name}: {place}: {detail}") from error
