"""Tasks by name: what an entry of `evaluation.tasks` means, and what the catalog's own tasks ask."""

from __future__ import annotations

import json
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from lingu_ray.config import EvaluationConfig, TaskConfig
from lingu_ray.config.task_catalog import catalog, listing
from lingu_ray.content import fingerprint
from lingu_ray.evaluation.engines.engine import ScoreRequest
from lingu_ray.evaluation.tasks.load import load_task
from lingu_ray.evaluation.tasks.task import Scored


def tasks(*entries: Any) -> tuple[TaskConfig, ...]:
    """The tasks that entries mean."""
    return EvaluationConfig.model_validate({"tasks": list(entries)}).tasks


def asked(name: str, folder: Path, *records: dict[str, Any]) -> list[tuple[tuple[ScoreRequest, ...], dict[str, Any]]]:
    """Requests and references of a catalog's task on records in the columns of its data."""
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    (config,) = tasks({"name": name, "path": str(path)})
    return [(item.requests, item.reference) for item in load_task(config).items if isinstance(item, Scored)]


@pytest.mark.parametrize("name", catalog())
def test_every_task_is_complete(name: str) -> None:
    """A name alone is a task, with a split to take; what it was resolved to means the same, read again."""
    (task,) = tasks(name)
    assert task.name == name and task.split and task.fields
    assert tasks(task.model_dump(mode="json")) == (task,)
    assert f"{name} " in listing()


def test_no_name_is_given_twice() -> None:
    """The files of the catalog do not hide one another's tasks, nor one file its own."""
    texts = [file.read_text() for file in (files("lingu_ray") / "config/tasks").iterdir()]
    keys = [pair[0].value for text in texts for pair in yaml.compose(text).value]
    assert [key for key, count in Counter(keys).items() if count > 1] == []
    assert set(keys) == set(catalog())


def test_a_mapping_takes_the_rest_from_the_catalog() -> None:
    """By its own name, or by `like` where one task is wanted twice."""
    (arc,) = tasks("arc_easy")
    assert tasks({"name": "arc_easy", "limit": 100}) == (arc.model_copy(update={"limit": 100}),)
    (mmlu,) = tasks("mmlu")
    assert tasks(*({"name": f"mmlu_{s}", "like": "mmlu", "subset": s} for s in ("anatomy", "virology"))) == tuple(
        mmlu.model_copy(update={"name": f"mmlu_{s}", "subset": s}) for s in ("anatomy", "virology")
    )


def test_a_task_of_ones_own_takes_nothing() -> None:
    """One that says its type is what it says, whatever its name."""
    (task,) = tasks({"name": "arc_easy", "kind": "language", "type": "multiple_choice", "path": "arc.jsonl"})
    assert task == TaskConfig(name="arc_easy", kind="language", type="multiple_choice", path="arc.jsonl")


def test_tasks_of_the_harness_by_name() -> None:
    """`lm_eval/NAME`, alone, with settings, or under another name."""
    task = TaskConfig(name="gsm8k", kind="language", type="lm_eval", path="gsm8k")
    assert tasks("lm_eval/gsm8k") == (task,)
    assert tasks({"name": "lm_eval/gsm8k", "limit": 5}) == (task.model_copy(update={"limit": 5}),)
    assert tasks({"name": "sums", "like": "lm_eval/gsm8k"}) == (task.model_copy(update={"name": "sums"}),)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("arc_eazy", "no task 'arc_eazy' in the catalog; did you mean arc_easy"),
        ({"name": "helaswag", "limit": 3}, "did you mean hellaswag"),
        ({"name": "mine", "like": "nothing of the kind"}, "there are arc_easy, arc_challenge"),
        ({"name": "mine", "kind": "language", "path": "x"}, "A task of your own needs kind, type and path"),
        ({"limit": 3}, "name\n  Field required"),
        (["arc_easy"], "valid dictionary"),
    ],
)
def test_unknown_tasks_are_refused_with_the_settings(entry: Any, message: str) -> None:
    """The error says what may have been meant."""
    with pytest.raises(ValidationError, match=message):
        tasks(entry)


def test_scienceqa_without_images(tmp_path: Path) -> None:
    """Questions with an image are not its own; a hint comes first where there is one."""
    shared = {"choices": ["ice", "steam"], "answer": 1}
    found = asked(
        "scienceqa_text",
        tmp_path,
        {"image": None, "question": "Which is hot?", "hint": "", **shared},
        {"image": {"path": "x.png"}, "question": "Which is shown?", "hint": "", **shared},
        {"image": None, "question": "Which is hot?", "hint": "Water boils.", **shared},
    )
    assert [requests[1] for requests, _ in found] == [
        ScoreRequest("Question: Which is hot?\nAnswer:", " steam"),
        ScoreRequest("Water boils.\nQuestion: Which is hot?\nAnswer:", " steam"),
    ]


def test_hellaswag_without_brackets(tmp_path: Path) -> None:
    """Marks of WikiHow's pages go from query and endings, a title becomes a sentence's end."""
    record = {
        "activity_label": "Baking",
        "ctx_a": "[header] How to bake [title] Heat the oven.",
        "ctx_b": "then SHE",
        "endings": ["waits. [substeps] A while.", " leaves."],
        "label": "1",
        "source_id": "wikihow~1",
    }
    ((requests, reference),) = asked("hellaswag", tmp_path, record)
    right = {"gold": 1, "lengths": [15, 7]}
    assert requests[0] == ScoreRequest("Baking: How to bake. Heat the oven. Then she", " waits. A while.")
    assert requests[1].continuation == " leaves." and reference == {**right, "cluster": fingerprint("wikihow~1")}
