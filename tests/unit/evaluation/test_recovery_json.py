"""Measured results as types and as JSON: one and the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from measured import write_measured

from lingu_ray.config import EvaluationConfig, TaskConfig
from lingu_ray.errors import UserError
from lingu_ray.evaluation.recovery import summarize
from lingu_ray.evaluation.recovery_json import FILE, as_json, from_json, read_recovery
from lingu_ray.evaluation.results import Means, Recovery

TASKS = (
    TaskConfig(name="cloze", kind="language", type="multiple_choice", path="-"),
    TaskConfig(name="text", kind="language", type="perplexity", path="-"),
    TaskConfig(name="digits", kind="vision", type="exact_match", path="-"),
)


@pytest.fixture
def measured(tmp_path: Path) -> Recovery:
    """Four models and another one on three tasks; vision falls from 90% to 85%."""
    right = {"teacher": 60, "adapted": 30, "plain_ce": 40, "distilled": 58, "other": 20}
    for model, count in right.items():
        write_measured(tmp_path, TASKS[0], model, [float(i < count) for i in range(100)])
        write_measured(tmp_path, TASKS[1], model, [(100 - count) / 10 + i % 3 for i in range(100)])
        if model != "teacher":
            share = 85 if model == "distilled" else 90
            write_measured(tmp_path, TASKS[2], model, [float(i < share) for i in range(100)])
    return summarize(tmp_path, list(right), EvaluationConfig(tasks=TASKS, bootstrap=100, min_retention=0.9))


def test_the_file_is_read_back(measured: Recovery, tmp_path: Path) -> None:
    """Types to JSON to types loses nothing, and so does JSON to types to JSON."""
    written = json.loads((tmp_path / FILE).read_text())
    assert read_recovery(tmp_path) == measured and as_json(from_json(written)) == written
    assert read_recovery(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("content", ["{}", "null", "[1]", '{"summary": {}, "tasks": {}}'])
def test_a_file_of_another_version_is_named(tmp_path: Path, content: str) -> None:
    """JSON that has not the results: with what to do."""
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError, match=rf"{tmp_path / FILE} (has|holds) no.*: remove it, and run the command"):
        read_recovery(tmp_path)


def test_the_keys_are_those_that_readers_know(measured: Recovery) -> None:
    """Scores by model, shares by name with their intervals, the control, the verdict."""
    tree = as_json(measured)
    assert tree.keys() == {"tasks", "summary"} and list(tree["tasks"]) == ["cloze", "text", "digits"]
    summary = {"recovery", "recovery_ci", "retention", "retention_ci", "over", "models", "claim_holds", "verdict"}
    further = {"exceptions", "parts", "reasons", "references", "formulas", "recovery_in"}
    assert tree["summary"].keys() == summary | further
    assert tree["summary"]["over"].keys() == {"adapted", "plain_ce", "other"}
    for means in tree["summary"]["over"].values():
        assert means.keys() == {"recovery", "recovery_ci", "retention", "retention_ci"} and None not in means.values()
    assert tree["summary"]["models"].keys() == {"plain_ce", "distilled", "other"}
    known = {
        "kind",
        "metric",
        "higher_is_better",
        "share",
        "n",
        "clusters",
        "models",
        "floor",
        "in_mean",
        "lost",
        "lost_ci",
        "over",
        "nats",
        "blind",
        "constant",
        "asked",
        "engine",
        "limit",
    }
    for name, share in (("cloze", "recovery"), ("text", "recovery"), ("digits", "retention")):
        task = tree["tasks"][name]
        assert task.keys() == known | {share, f"{share}_ci", f"{share}_reason"}
        assert task["models"]["distilled"].keys() >= {"score", "ci", share, f"{share}_ci"}
        assert task["over"].keys() == {"adapted", "plain_ce", "other"}
    assert "nats_per_token" in tree["tasks"]["text"]["models"]["teacher"]


def test_files_of_earlier_versions_are_read(measured: Recovery) -> None:
    """Without floors, controls by name, references, parts and nats: what there is stays, and the rest is not known."""
    tree = as_json(measured)
    for key in ("exceptions", "parts", "reasons", "references", "formulas", "over", "recovery_in"):
        del tree["summary"][key]
    for task in tree["tasks"].values():
        for key in ("floor", "in_mean", "lost", "over", "nats", "blind"):
            del task[key]
    old = from_json(tree)
    assert old.distilled == measured.distilled and old.models == measured.models and old.over == {}
    assert old.tasks["cloze"].nats is None and old.recovery_in == "metric"
    assert old.tasks["digits"].models == measured.tasks["digits"].models and old.tasks["digits"].floor is None
    assert old.verdict.text == measured.verdict.text and old.verdict.exceptions == ()
    assert old.references == measured.references  # all that there was


def test_the_controls_of_earlier_versions_are_read(measured: Recovery) -> None:
    """They had the difference of recovery alone, of the controls alone."""
    tree = as_json(measured)
    ahead = tree["summary"].pop("over")["plain_ce"]
    difference = {"difference": ahead["recovery"], "difference_ci": ahead["recovery_ci"]}
    tree["summary"]["controls"] = {"plain_ce": {**tree["summary"]["models"]["plain_ce"], **difference, "beaten": True}}
    assert from_json(tree).over == {"plain_ce": Means(measured.over["plain_ce"].recovery, None)}


def test_reasons_for_means_without_a_value(measured: Recovery, tmp_path: Path) -> None:
    """Task by task, or that there is none."""
    assert measured.reasons == {}
    assert measured.measured == ["teacher", "adapted", "plain_ce", "distilled", "other"]
    alone = summarize(tmp_path, ["plain_ce"], EvaluationConfig(tasks=TASKS[:2], bootstrap=50))
    missing = "not measured: teacher, adapted, distilled"
    reasons = {"recovery": f"cloze: {missing}; text: {missing}", "retention": "no vision task counts in the mean"}
    assert alone.reasons == reasons
