"""Items that share a passage were not sampled one by one: `fields.cluster` names what they share."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from tiny import picture

from lingu_ray.config import EvaluationConfig, TaskConfig
from lingu_ray.config.evaluation import CLUSTER
from lingu_ray.errors import UserError
from lingu_ray.evaluation.engines.engine import Answer, Score
from lingu_ray.evaluation.item_files import Stamp, read_items
from lingu_ray.evaluation.levels import read_levels
from lingu_ray.evaluation.measure import CHUNK, TaskRun
from lingu_ray.evaluation.recovery import summarize
from lingu_ray.evaluation.recovery_json import FILE, read_recovery
from lingu_ray.evaluation.replicas import Answers, Chunk
from lingu_ray.evaluation.results import TaskScores
from lingu_ray.evaluation.tasks.load import load_task, load_tasks
from lingu_ray.report.evaluation_page import write_evaluation

QUESTIONS, PASSAGES = 400, 50
CHOICE = {"query": "{{passage}} {{question}}", "choices": "{{['no', 'yes']}}", "gold": "gold"}
WORDS = {"question": "question", "answer": "answer", "image": "image"}


def task(folder: Path, *records: dict[str, Any], kind: str = "language", fields: dict[str, str]) -> TaskConfig:
    """A task on a file of these records: a choice, or a short answer about a picture."""
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    kinds = {"kind": kind, "type": "multiple_choice" if kind == "language" else "exact_match"}
    return TaskConfig.model_validate({"name": "read", "path": str(path), "fields": fields, **kinds})


def questions(count: int, passages: int) -> list[dict[str, Any]]:
    """As many questions, in a row about each passage."""
    return [{"passage": f"P{i * passages // count}", "question": f"{i}?", "gold": 1} for i in range(count)]


def read_tasks(folder: Path) -> dict[str, TaskScores]:
    """What a measured folder's file says."""
    result = read_recovery(folder)
    assert result is not None
    return dict(result.tasks)


def measured(config: TaskConfig, folder: Path, answers: Answers) -> TaskScores:
    """What a model that gives these answers reaches."""
    run = TaskRun(load_task(config), Stamp("", "", "", {}), "adapted", folder)
    for begin in range(0, len(run.task.items), CHUNK):
        width = len(answers) // len(run.task.items)
        run.keep(Chunk(begin, lambda: []), answers[begin * width : (begin + CHUNK) * width])
    run.parts.join(len(run.task.items))
    return summarize(folder, ["adapted"], EvaluationConfig(tasks=(config,), bootstrap=500)).tasks["read"]


def test_questions_about_one_passage_count_for_less(tmp_path: Path) -> None:
    """Eight that stand and fall together: the score stays, the interval grows by √8, in nats as well."""
    right = [i // 8 % 2 for i in range(QUESTIONS)]
    answers = [Score(nats, 1, True) for yes in right for nats in ((-2.0, -1.0) if yes else (-1.0, -2.0))]
    found = {}
    for name, fields in {"alone": CHOICE, "together": CHOICE | {CLUSTER: "passage"}}.items():
        config = task(tmp_path, *questions(QUESTIONS, PASSAGES), fields=fields)
        found[name] = measured(config, tmp_path / name, answers)
        assert read_tasks(tmp_path / name)["read"] == found[name]
    alone, together = found["alone"], found["together"]
    for one, other in ((alone, together), (alone.nats, together.nats)):
        assert one is not None and other is not None
        before, after = one.models["adapted"].score, other.models["adapted"].score
        assert after.value == before.value
        wider = (after.ci.high - after.ci.low) / (before.ci.high - before.ci.low)
        assert wider == pytest.approx(math.sqrt(8), rel=0.15)
    assert (alone.counted_items, together.counted_items) == ("400", "400 in 50 clusters")


def test_the_first_items_of_a_set_are_said_to_be_that(tmp_path: Path) -> None:
    """They may be of its first subjects alone: page, record and sentence say that a limit chose them."""
    config = task(tmp_path, *questions(QUESTIONS, PASSAGES), fields=CHOICE).model_copy(update={"limit": 40})
    found = measured(config, tmp_path / "first", [Score(float(-i % 3), 1, True) for i in range(80)])
    assert found.counted_items == "first 40" and read_tasks(tmp_path / "first")["read"] == found
    result = read_recovery(tmp_path / "first")
    assert result is not None
    page = write_evaluation(result, tmp_path / "first").read_text(encoding="utf-8")
    assert ">first 40</td>" in page and "First: a task's <code>limit</code>" in page


def test_a_result_of_an_earlier_version_counts_items(tmp_path: Path) -> None:
    """Its file says nothing of clusters."""
    config = task(tmp_path, *questions(4, 2), fields=CHOICE | {CLUSTER: "passage"})
    measured(config, tmp_path, [Score(-1.0, 1, True)] * 8)
    tree = json.loads((tmp_path / FILE).read_text(encoding="utf-8"))
    assert tree["tasks"]["read"].pop("clusters") == 2
    (tmp_path / FILE).write_text(json.dumps(tree), encoding="utf-8")
    assert read_tasks(tmp_path)["read"].clusters == 4


def test_a_cluster_takes_the_place_of_the_picture(tmp_path: Path) -> None:
    """Pages of one document are other pictures, and drawn together where the document is named."""
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    records = [{"question": f"{i}?", "answer": "a", "image": f"{i}.png", "document": i // 2} for i in range(4)]
    for fields, clusters in ((WORDS, 4), (WORDS | {CLUSTER: "document"}, 2)):
        config = task(tmp_path, *records, kind="vision", fields=fields)
        assert measured(config, tmp_path, [Answer("a", False)] * 4).clusters == clusters
        kept = read_items(tmp_path, "read", "adapted")
        assert kept is not None and len(set(kept[CLUSTER])) == clusters


@pytest.mark.parametrize("kind", ["vision", "language"])
def test_tasks_of_the_same_items_draw_the_same(kind: str, tmp_path: Path) -> None:
    """Whatever their names and metrics are; tasks of as many other items draw others."""
    for i in range(40):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    levels = []
    other = "anls" if kind == "vision" else "exact_match"
    for name, type, first in (("forms", "exact_match", 0), ("read", other, 0), ("others", other, 20)):
        records = [{"question": f"{i}?", "answer": "yes", "image": f"{i}.png"} for i in range(first, first + 20)]
        path = tmp_path / "items.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        fields = {field: field for field in WORDS if field != "image" or kind == "vision"}
        config = TaskConfig.model_validate(dict(name=name, kind=kind, type=type, path=str(path), fields=fields))
        run = TaskRun(load_task(config), Stamp("", "", "", {}), "adapted", tmp_path)
        run.keep(Chunk(0, lambda: []), [Answer(said, False) for said in ("yes", "0000")] * 10)
        run.parts.join(len(run.task.items))
        levels.append(read_levels(tmp_path, config, ["adapted"], 100).levels["adapted"].value_R)
    forms, read, others = levels
    assert np.array_equal(forms, read) and not np.array_equal(forms, others)


def test_answers_without_the_cluster_are_not_taken_again(tmp_path: Path) -> None:
    """They do not say what they share; another text for the same parts is another question, too."""
    records = questions(4, 2)
    asked = {
        load_task(task(tmp_path, *records, fields=CHOICE | more)).asked
        for more in ({}, {CLUSTER: "passage"}, {CLUSTER: "question"})
    }
    assert len(asked) == 3


@pytest.mark.parametrize("value", [None, "", " ", True, 0.5, ["a"]])
def test_what_is_no_cluster_is_refused(value: object, tmp_path: Path) -> None:
    """By the row and the field."""
    config = task(tmp_path, *(one | {"of": value} for one in questions(2, 2)), fields=CHOICE | {CLUSTER: "of"})
    with pytest.raises(UserError, match=r"read: .*items.jsonl:1: `cluster` must be a text that is not empty, or a"):
        load_task(config)


def test_one_cluster_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing tells how clusters differ then."""
    records = questions(6, 2)
    for count, told in ((6, 0), (3, 1), (1, 0)):
        caplog.clear()
        config = task(tmp_path, *records, fields=CHOICE | {CLUSTER: "passage"}).model_copy(update={"limit": count})
        with caplog.at_level(logging.WARNING):
            load_tasks(EvaluationConfig(tasks=(config,)))
        assert caplog.text.count(f"read: `cluster` is the same for all {count} items") == told


def test_mme_has_groups(tmp_path: Path) -> None:
    """Its two questions about an image are one entry; a cluster beside them would be a second word for it."""
    fields = {"question": "q", "gold": "g", "category": "c", "group": "n", "image": "i", CLUSTER: "n"}
    with pytest.raises(ValidationError, match=r"fields\.cluster: type 'mme' of kind 'vision' does not ask for it"):
        TaskConfig.model_validate({"name": "t", "kind": "vision", "type": "mme", "path": "x", "fields": fields})
