"""A vision task asked without its images: what of its score language alone gives away.

Items, references and metric are the task's own; the prompt is the question as plain text.
"""

from __future__ import annotations

from dataclasses import replace

from lingu_ray.corpus.row import PLACEHOLDER
from lingu_ray.errors import UserError
from lingu_ray.evaluation.tasks.task import Asked, Item, Task


def blind_name(task: str) -> str:
    """The name of a task's items without their images; no task of the settings can have it."""
    return f"{task}@blind"


def blinded(task: Task) -> Task:
    """The task without its images and the marks for them.

    Raises:
        UserError: a question is nothing but its images.
    """
    name = blind_name(task.config.name)
    return Task(task.config.model_copy(update={"name": name}), tuple(_blinded(item, task) for item in task.items))


def without_placeholders(question: str) -> str:
    """A question without the marks for its images."""
    return question.replace(PLACEHOLDER, "").strip()


def _blinded(item: Item, task: Task) -> Item:
    assert isinstance(item, Asked)  # as all items of vision tasks are
    prompt = without_placeholders(item.prompt)
    if not prompt:
        raise UserError(
            f"evaluation.blind: {task.config.name}: item {item.name} asks nothing without its image; "
            "give it words in `question`, or leave evaluation.blind out"
        )
    return replace(item, prompt=prompt, images=())
