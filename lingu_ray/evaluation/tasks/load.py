"""Loading tasks: every item is checked before a model is loaded, and none is skipped."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice

from lingu_ray.config import EvaluationConfig, TaskConfig
from lingu_ray.config.evaluation import CLUSTER
from lingu_ray.corpus.record import BadRecord
from lingu_ray.errors import UserError
from lingu_ray.evaluation.tasks.blind import blinded
from lingu_ray.evaluation.tasks.fields import fields_of, selected
from lingu_ray.evaluation.tasks.harness import harness_items
from lingu_ray.evaluation.tasks.images import item_images
from lingu_ray.evaluation.tasks.rows import places
from lingu_ray.evaluation.tasks.task import Item, Task
from lingu_ray.evaluation.tasks.task_types import Malformed, asked, check_together, is_scored, scored
from lingu_ray.literals import is_text_of_list

log = logging.getLogger(__name__)


def load_tasks(settings: EvaluationConfig) -> list[Task]:
    """Read and check all items of all tasks; with `blind` each vision task is there without its images, too.

    Raises:
        UserError: as `load_task`; a question is nothing but its images.
    """
    tasks = [load_task(config) for config in settings.tasks]
    for task in tasks:
        _warn_of_cut_answers(task)
        _warn_of_listed_answers(task)
        _warn_of_one_cluster(task)
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


def _warn_of_cut_answers(task: Task) -> None:
    """Tell of items that no answer can get right: a word is a token at least."""
    longest = task.config.max_new_tokens
    accepted = [item.reference["answers"] for item in task.items if "answers" in item.reference]
    if cut := sum(min(len(answer.split()) for answer in answers) > longest for answers in accepted):
        log.warning(
            "evaluation.tasks: %s: of %d of %d items every right answer has more words than max_new_tokens=%d has "
            "tokens, so that a model's is cut off: raise tasks.%s.max_new_tokens",
            *(task.config.name, cut, len(task.items), longest, task.config.name),
        )


def _warn_of_listed_answers(task: Task) -> None:
    """Tell of a task whose right answers are the texts of lists, which hardly a model says."""
    accepted = [item.reference.get("answers", ()) for item in task.items]
    if all(len(answers) == 1 and is_text_of_list(answers[0]) for answers in accepted):
        log.warning(
            "evaluation.tasks: %s: the answer of every item is the text of a list, as %.80s, and right as a whole; "
            'where each of its entries is right, it is `fields.answer`: "{{answer | as_list}}"',
            *(task.config.name, accepted[0][0]),
        )


def _warn_of_one_cluster(task: Task) -> None:
    """Tell of a task whose `cluster` parts nothing."""
    found = {item.reference.get(CLUSTER) for item in task.items}
    if len(found) == 1 and None not in found and len(task.items) > 1:
        log.warning(
            "evaluation.tasks: %s: `cluster` is the same for all %d items: nothing tells how clusters differ, so items "
            "are drawn one by one, and intervals are too narrow; take more items, or let it name what some share",
            *(task.config.name, len(task.items)),
        )


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
