"""What one answer for all items scores, by every metric of vision, and that a model which is no better is named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lingu_ray.config import EvaluationConfig, TaskConfig
from lingu_ray.evaluation.bootstrap import Bounds
from lingu_ray.evaluation.item_files import items_path, write_items
from lingu_ray.evaluation.levels import seed_of
from lingu_ray.evaluation.metrics.constant import answered_alike, commonest_answer
from lingu_ray.evaluation.recovery import summarize
from lingu_ray.evaluation.recovery_json import read_recovery
from lingu_ray.evaluation.tasks.judging import METRICS
from lingu_ray.report.evaluation_page import write_evaluation

ITEMS, RESAMPLES = 90, 60
PAGES = {"category": ["a"] * 4, "group": ["1", "1", "2", "2"]}


@pytest.mark.parametrize(
    ("type", "references", "answer", "level"),
    [
        ("exact_match", {"answers": [["A cat."], ["dog", "hound"], ["cat"], ["Dog"], ["cats"]]}, "A cat.", 2 / 5),
        ("anls", {"answers": [["1998"], ["1999"], ["1999"]]}, "1999", (2 + 0.75) / 3),
        ("relaxed_accuracy", {"answers": [["100"], ["100"], ["103"], ["7"]]}, "100", 3 / 4),
        ("vqa_accuracy", {"answers": [["yes"] * 4 + ["no"], ["no"] * 5, ["red"] * 5]}, "no", (0.8 / 3 + 1) / 3),
        ("multiple_choice", {"choices": [["x", "y", "z"]] * 3, "gold": [1, 2, 2]}, "C", 2 / 3),
        ("multiple_choice", {"choices": [["x", "y", "z"], ["x", "y", "z"], ["x", "y"]], "gold": [2, 2, 1]}, "C", 2 / 3),
        ("mme", {"gold": ["yes", "no", "yes", "yes"], **PAGES}, "yes", (50 + 200) / 2),
    ],
)
def test_the_commonest_right_answer(type: str, references: dict[str, Any], answer: str, level: float) -> None:
    """Spellings that the metrics take for one are one; each metric judges it as any other answer."""
    columns = {"item": [str(i) for i in range(len(next(iter(references.values()))))], **references}
    assert commonest_answer(columns) == answer
    scores = METRICS[type].judge(answered_alike(columns, answer))
    assert math.fsum(scores.score) / math.fsum(scores.weight) == pytest.approx(level)


def test_a_model_that_is_no_better_is_named(tmp_path: Path) -> None:
    """Paired over items, as a slow reference has it; captions and language have no such answer."""
    answers = ["yes" if i % 3 else "no" for i in range(ITEMS)]
    right = {"adapted": [float(i % 10 < 7) for i in range(ITEMS)], "distilled": [float(i > 2) for i in range(ITEMS)]}
    tasks = [
        TaskConfig(name=name, kind=kind, type=type, path="-")
        for name, kind, type in (("seen", "vision", "exact_match"), ("told", "vision", "rouge_l"))
    ]
    tasks.append(TaskConfig(name="known", kind="language", type="exact_match", path="-"))
    for task in tasks:
        for model, score in right.items():
            said = [answer if hit else "?" for answer, hit in zip(answers, score, strict=True)]
            columns = {"item": [str(i) for i in range(ITEMS)], "prediction": said, "answers": [[a] for a in answers]}
            write_items(items_path(tmp_path, task.name, model), columns, None)
            if task.kind == "language":
                write_items(items_path(tmp_path, task.name, "teacher"), columns, None)
    settings = EvaluationConfig(tasks=tuple(tasks), bootstrap=RESAMPLES)
    result = summarize(tmp_path, ["teacher", "adapted", "distilled"], settings)
    assert result.tasks["told"].constant is None and result.tasks["known"].constant is None
    found = result.tasks["seen"].constant
    assert found is not None and (found.answer, found.score.value) == ("yes", pytest.approx(2 / 3))
    drawn = {"item": [str(i) for i in range(ITEMS)], "answers": [[answer] for answer in answers]}
    seed = seed_of(drawn)
    draws = np.random.default_rng(seed).integers(ITEMS, size=(RESAMPLES, ITEMS)).tolist()
    for model, score in right.items():
        gain = [hit - (answer == "yes") for hit, answer in zip(score, answers, strict=True)]
        unseen_R, (its_R, always_R) = Bounds(1.0, (f" {model}", "always yes")).drawn(RESAMPLES, seed)
        more = zip(draws, unseen_R, its_R - always_R, strict=True)
        drawn = [(math.fsum(gain[i] for i in items) + ahead) / (ITEMS + unseen) for items, unseen, ahead in more]
        expected = [math.fsum(gain) / ITEMS, *np.percentile(drawn, [2.5, 97.5])]
        assert [found.above[model].value, *found.above[model].ci] == pytest.approx(expected, abs=1e-12)
    assert found.is_as_good_as("adapted") and not found.is_as_good_as("distilled")
    seen = result.tasks["seen"]
    assert seen.distilled is None and "not better beyond noise than always “yes”" in (seen.reason or "")
    assert not seen.in_mean and result.tasks["told"].in_mean
    # of a baseline next to 0 it would be the other task's
    assert result.distilled.retention == result.tasks["told"].distilled
    assert "; seen: adapted is not better beyond noise than always “yes”, 3.3 [" in result.verdict.text
    assert "told: adapted is not" not in result.verdict.text and read_recovery(tmp_path) == result
    page = write_evaluation(result, tmp_path).read_text(encoding="utf-8")
    assert "always “yes”: 66.7%" in page and "given to every item" in page


def test_a_score_next_to_its_noise_is_kept_of_nothing(tmp_path: Path) -> None:
    """Six of a hundred are beyond one answer and 0, and may be two or twelve: no quotient, and the task is named."""
    answers = [str(i) for i in range(100)]
    tasks = [TaskConfig(name=name, kind="vision", type="exact_match", path="-") for name in ("faint", "clear")]
    for task in tasks:
        for model, count in {"teacher": 50, "adapted": 6, "distilled": 12}.items():
            right = count if task.name == "faint" else 80
            said = [answer if i < right else "?" for i, answer in enumerate(answers)]
            columns = {"item": answers, "prediction": said, "answers": [[a] for a in answers]}
            write_items(items_path(tmp_path, task.name, model), columns, None)
    settings = EvaluationConfig(tasks=tuple(tasks), bootstrap=RESAMPLES)
    result = summarize(tmp_path, ["teacher", "adapted", "distilled"], settings)
    faint = result.tasks["faint"]
    assert faint.constant is not None and not faint.constant.is_as_good_as("adapted")
    assert faint.distilled is None and "too little to keep, next to its noise: exact_match 0.060" in str(faint.reason)
    assert not faint.in_mean and result.distilled.retention == result.tasks["clear"].distilled
    assert "faint: adapted has too little to keep, 6.0 [" in result.verdict.text


def test_a_loss_where_there_is_nothing_to_keep_is_named(tmp_path: Path) -> None:
    """A baseline that is as good as always yes has no retention; that the distilled model is worse is said."""
    answers = ["yes"] * 60 + ["no"] * 30
    right = {"teacher": 0, "adapted": 62, "distilled": 20}
    task = TaskConfig(name="seen", kind="vision", type="exact_match", path="-")
    for model, count in right.items():
        said = [answer if i < count else "?" for i, answer in enumerate(answers)]
        columns = {"item": [str(i) for i in range(ITEMS)], "prediction": said, "answers": [[a] for a in answers]}
        write_items(items_path(tmp_path, task.name, model), columns, None)
    result = summarize(tmp_path, list(right), EvaluationConfig(tasks=(task,), bootstrap=RESAMPLES))
    assert result.distilled.retention is None and "nothing to keep" in result.reasons["retention"]
    assert any("seen: distilled is worse than adapted by 46.7" in exception for exception in result.verdict.exceptions)
