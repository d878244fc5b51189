"""Recovery in nats beside the recovery of an accuracy: its numbers, where it counts, and where it is shown."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lingu_ray.config import EvaluationConfig, TaskConfig
from lingu_ray.evaluation.item_files import items_path, read_items, write_items
from lingu_ray.evaluation.levels import seed_of
from lingu_ray.evaluation.recovery import summarize
from lingu_ray.evaluation.recovery_json import FILE, read_recovery
from lingu_ray.evaluation.results import Estimate, Recovery
from lingu_ray.evaluation.tracking import figures_of
from lingu_ray.report.evaluation_page import write_evaluation

MODELS = ("teacher", "adapted", "plain_ce", "distilled")
LOSSES = {"teacher": 0.0, "adapted": 1.4, "plain_ce": 0.9, "distilled": 0.3}
WORDS = TaskConfig(name="words", kind="language", type="last_word", path="-")
CLOZE = TaskConfig(name="cloze", kind="language", type="multiple_choice", metric="acc_norm", path="-")
ITEMS, RESAMPLES = 60, 50


@pytest.fixture
def nats(tmp_path: Path) -> dict[str, dict[str, list[float]]]:
    """Nats of every right answer, by task and model, as written to `tmp_path`: all models are right equally often."""
    random = np.random.default_rng(7)
    written: dict[str, dict[str, list[float]]] = {WORDS.name: {}, CLOZE.name: {}}
    right, golds = random.random(ITEMS) < 0.4, random.integers(3, size=ITEMS)
    for model in MODELS:
        of_words, of_gold = 4 + LOSSES[model] + random.gamma(2, 0.7, (2, ITEMS))
        logliks = [[-nats - (0.1 if hit else -0.1) for _ in range(3)] for nats, hit in zip(of_gold, right, strict=True)]
        for options, gold, nats in zip(logliks, golds, of_gold, strict=True):
            options[gold] = -nats
        names = [str(number) for number in range(ITEMS)]
        greedy = {
            "logliks": [[-nats] for nats in of_words],
            "tokens": [[2]] * ITEMS,
            "greedy": [[bool(r)] for r in right],
        }
        chosen = {"logliks": logliks, "lengths": [[1, 1, 1]] * ITEMS, "gold": golds.tolist()}
        write_items(items_path(tmp_path, WORDS.name, model), {"item": names, **greedy}, None)
        write_items(items_path(tmp_path, CLOZE.name, model), {"item": names, **chosen}, None)
        written[WORDS.name][model], written[CLOZE.name][model] = of_words.tolist(), of_gold.tolist()
    return written


def summarized(folder: Path, **settings: Any) -> Recovery:
    """The result of both tasks."""
    return summarize(folder, list(MODELS), EvaluationConfig(tasks=(WORDS, CLOZE), bootstrap=RESAMPLES, **settings))


def reference(nats: dict[str, list[float]], drawn: object, model: str) -> tuple[float, list[float]]:
    """Recovery in nats and its interval, by loops over items, from the definition; `drawn`: the items."""
    draws = np.random.default_rng(seed_of(drawn)).integers(ITEMS, size=(RESAMPLES, ITEMS)).tolist()

    def lead(of: str, items: list[int]) -> float:
        return math.fsum(nats["adapted"][i] - nats[of][i] for i in items) / len(items)

    losses = [lead("teacher", items) for items in draws]
    least = float(np.percentile(losses, 2.5))
    shares = [lead(model, items) / max(loss, least) for items, loss in zip(draws, losses, strict=True)]
    everything = list(range(ITEMS))
    return lead(model, everything) / lead("teacher", everything), np.percentile(shares, [2.5, 97.5]).tolist()


def numbers(found: Estimate | None) -> list[float]:
    """Value and interval as one list."""
    assert found is not None
    return [found.value, *found.ci]


def test_recovery_in_nats_is_that_of_a_slow_reference(nats: dict[str, dict[str, list[float]]], tmp_path: Path) -> None:
    """Last word and multiple choice, each model, value and interval; the accuracies show no loss at all."""
    result = summarized(tmp_path)
    for name, of_models in nats.items():
        task = result.tasks[name]
        assert task.distilled is None and "no loss to recover beyond noise" in (task.reason or "")
        assert task.nats is not None and not task.nats.higher_is_better and task.nats.items == ITEMS
        assert numbers(task.nats.distilled) == numbers(task.nats.models["distilled"].quotient)
        kept = read_items(tmp_path, name, "teacher") or {}
        drawn = {key: kept[key] for key in ("item", "lengths", "gold") if key in kept}
        for model in ("plain_ce", "distilled"):
            value, ci = reference(of_models, drawn, model)
            assert numbers(task.nats.models[model].quotient) == pytest.approx([value, *ci], rel=1e-12)
            ahead = math.fsum(of_models[model]) - math.fsum(of_models["distilled"])
            if model != "distilled":
                assert task.nats.over[model].value == pytest.approx(ahead / ITEMS)
        for model in MODELS:
            assert task.nats.models[model].score.value == pytest.approx(math.fsum(of_models[model]) / ITEMS)
    assert result.tasks["words"].nats is not None and result.tasks["words"].nats.metric == "nats_per_word"


def test_the_mean_takes_what_was_chosen(nats: dict[str, dict[str, list[float]]], tmp_path: Path) -> None:
    """By default the metrics, so that nats change no number; with `recovery_in: nats` nats, in the verdict too."""
    by_metric = summarized(tmp_path)
    assert by_metric.distilled.recovery is None and by_metric.recovery_in == "metric"
    assert "not judged alone: words (in nats " in by_metric.verdict.text
    in_nats = summarized(tmp_path, recovery_in="nats")
    assert in_nats.distilled.recovery is not None
    ahead = in_nats.over["plain_ce"].recovery
    assert ahead is not None and ahead.is_positive
    words, cloze = (in_nats.tasks[name].nats for name in ("words", "cloze"))
    assert words is not None and words.distilled is not None and cloze is not None and cloze.distilled is not None
    low, high = sorted((words.distilled.value, cloze.distilled.value))
    assert low < in_nats.distilled.recovery.value < high
    assert in_nats.verdict.parts["recovery"] is False and "words: recovery" in in_nats.verdict.text
    for result, counts in ((by_metric, [True, False]), (in_nats, [False, True])):
        assert [task.in_mean for name, task in result.rows if name == "words"] == counts


def test_nats_stand_in_every_result(nats: dict[str, dict[str, list[float]]], tmp_path: Path) -> None:
    """recovery.json, MLflow's metrics and the page have them beside the accuracy; the file is read back as it was."""
    result = summarized(tmp_path, recovery_in="nats")
    assert read_recovery(tmp_path) == result
    words = json.loads((tmp_path / FILE).read_text())["tasks"]["words"]
    assert words["metric"] == "acc" and words["recovery"] is None and words["nats"]["metric"] == "nats_per_word"
    assert words["nats"]["models"]["distilled"]["recovery_ci"] == words["nats"]["recovery_ci"]
    figures = figures_of(result, "distilled")
    assert figures["eval/words/nats"] == words["nats"]["models"]["distilled"]["score"]
    assert figures["eval/words/recovery_nats"] == words["nats"]["recovery"] and "eval/words/recovery" not in figures
    page = write_evaluation(result, tmp_path).read_text()
    assert "nats_per_word ↓" in page and "Mean recovery and verdict take nats" in page
