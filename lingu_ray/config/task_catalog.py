"""Evaluation tasks by name: the catalog in `config/tasks/*.yaml`, and `lm_eval/NAME` of lm-evaluation-harness."""

from __future__ import annotations

import difflib
from functools import cache
from importlib.resources import files
from typing import Any

from lingu_ray.config import strict_yaml

Settings = dict[str, Any]

LM_EVAL = "lm_eval/"


@cache
def catalog() -> dict[str, Settings]:
    """The settings of each task of the catalog, by its name."""
    known: dict[str, Settings] = {}
    for file in sorted((files("lingu_ray") / "config/tasks").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".yaml"):
            known |= strict_yaml.load(file.read_text("utf-8"), file.name)[0]
    return known


def listing() -> str:
    """The catalog as text, a line per task: name, kind, type, path of its data."""
    longest = max(map(len, catalog()))
    return "\n".join(
        f"{name:{longest}}  {task['kind']:8}  {task['type']:16}  {task['path']}" for name, task in catalog().items()
    )


def complete(task: Any) -> Any:
    """The full settings of an entry of `evaluation.tasks`.

    `arc_easy` is a task of the catalog, `lm_eval/gsm8k` one of lm-evaluation-harness. A mapping without `type` inherits
    what it does not set from the task with its `name`, or with the name under `like`. Anything else stays unchanged.

    Raises:
        ValueError: no such task.
    """
    if isinstance(task, str):
        task = {"name": task}
    if not isinstance(task, dict) or "type" in task or not isinstance(task.get("name"), str):
        return task
    known = str(task.get("like", task["name"]))
    given = {key: value for key, value in task.items() if key != "like"}
    if known.startswith(LM_EVAL):
        name = given["name"].removeprefix(LM_EVAL)  # it becomes a file's name
        return {"kind": "language", "type": "lm_eval", "path": known.removeprefix(LM_EVAL)} | given | {"name": name}
    if known not in catalog():
        near = difflib.get_close_matches(known, catalog(), n=3)
        meant = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(catalog())}."
        raise ValueError(f"no task {known!r} in the catalog; {meant} A task of your own needs kind, type and path")
    return catalog()[known] | given
