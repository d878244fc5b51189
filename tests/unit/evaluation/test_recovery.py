"""Metrics, bootstrap and the arithmetic of recovery, on cases worked out by hand."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured import write_measured

from lingu_ray.config import EvaluationConfig, TaskConfig
from lingu_ray.config.evaluation import CLUSTER
from lingu_ray.errors import UserError
from lingu_ray.evaluation.bootstrap import Bounds, interval, level, resample, summed
from lingu_ray.evaluation.item_files import items_path, measured_models, read_columns, write_items
from lingu_ray.evaluation.metrics.choice import COGNITION
from lingu_ray.evaluation.recovery import summarize
from lingu_ray.evaluation.recovery_json import FILE, read_recovery
from lingu_ray.evaluation.results import Means
from lingu_ray.evaluation.roles import OF_A_NEW_VLM, OF_THE_PAPER, OF_THE_TEACHER, References, references_among

CLOZE = TaskConfig(name="cloze", kind="language", type="multiple_choice", path="-")
TEXT = TaskConfig(name="text", kind="language", type="perplexity", path="-")
DIGITS = TaskConfig(name="digits", kind="vision", type="exact_match", path="-")


def correct(share: float, items: int) -> list[float]:
    """The first `share` of the items are right."""
    return [float(i < round(share * items)) for i in range(items)]


def settings(*tasks: TaskConfig, **more: Any) -> EvaluationConfig:
    """Settings with the tasks."""
    return EvaluationConfig(tasks=tasks, bootstrap=500, **more)


def test_perplexity_is_per_token_over_all_texts(tmp_path: Path) -> None:
    """exp(Σ nats / Σ tokens), not the mean of the texts' perplexities."""
    write_measured(tmp_path, TEXT, "teacher", [2.0, 10.0], [2.0, 4.0])
    entry = summarize(tmp_path, ["teacher"], settings(TEXT)).tasks["text"].models["teacher"]
    assert entry.score.value == pytest.approx(math.exp(12 / 6))
    assert entry.extra == {"nats_per_token": pytest.approx(2.0)}


def test_bootstrap_draws_the_same_items_for_all_models() -> None:
    """Two models with the same scores agree in every resample; a constant difference has no spread; seeded."""
    score_I = np.random.default_rng(0).random(50)
    score_KI = np.stack([score_I, score_I + 0.25])
    levels_RK = resample(score_KI, np.ones((2, 50)), 300, [1])
    assert np.allclose(levels_RK[:, 1] - levels_RK[:, 0], 0.25) and levels_RK[:, 0].std() > 0
    assert np.array_equal(levels_RK, resample(score_KI, np.ones((2, 50)), 300, [1]))
    assert not np.array_equal(levels_RK, resample(score_KI, np.ones((2, 50)), 300, [2]))


def test_bootstrap_interval_covers() -> None:
    """In 200 simulated evaluations the 95% interval of a token-weighted mean holds the truth in 90 to 99% of them."""
    random = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        weight_1I = random.integers(5, 50, size=(1, 120)).astype(float)
        score_1I = weight_1I * (2.0 + random.normal(size=(1, 120)))
        low, high = interval(resample(score_1I, weight_1I, 400, [trial])[:, 0])
        assert low <= level(score_1I, weight_1I)[0] <= high
        hits += low <= 2.0 <= high
    assert 180 <= hits <= 198


@pytest.mark.slow
@pytest.mark.parametrize(
    ("items", "share", "discordant"), [(50, 0.02, None), (100, 0.98, None), (50, 0.7, 0.01), (100, 0.7, 0.01)]
)
def test_few_items_that_differ_are_within_the_interval(items: int, share: float, discordant: float | None) -> None:
    """Scores next to 0 and 1, and a second model that has a few items less: of 300 intervals 93% hold the truth, and
    fewer than 90% without unseen items.
    """
    random = np.random.default_rng(5)
    lost = discordant or 0.0
    truth = share if discordant is None else -lost
    hits = {None: 0, Bounds(1.0, ("one", "other")): 0}
    for trial in range(300):
        draw_I = random.random(items)
        score_KI = np.stack([draw_I < share, draw_I < share - lost]).astype(float)
        for bounds in hits:
            levels_RK = resample(score_KI, np.ones((2, items)), 300, [trial], bounds=bounds)
            low, high = interval(levels_RK[:, 0] if discordant is None else levels_RK[:, 1] - levels_RK[:, 0])
            hits[bounds] += low - 1e-9 <= truth <= high + 1e-9
    without, found = hits.values()
    assert without < 270 and found >= 279


def test_questions_about_one_image_are_drawn_together() -> None:
    """Of 60 images with 8 questions the interval holds the truth in 95%; of questions drawn alone in far less."""
    random = np.random.default_rng(4)
    images = [i // 8 for i in range(480)]
    hits, hits_alone = 0, 0
    for trial in range(200):
        easy_I = random.normal(size=60)[images]  # some images are easy, some are hard
        score_1I = (easy_I + random.normal(size=(1, 480)) > 0).astype(float)
        ones_1I = np.ones((1, 480))
        low, high = interval(resample(summed(score_1I, images), summed(ones_1I, images), 400, [trial])[:, 0])
        hits += low <= 0.5 <= high
        low, high = interval(resample(score_1I, ones_1I, 400, [trial])[:, 0])
        hits_alone += low <= 0.5 <= high
    assert 180 <= hits <= 198 and hits_alone < 150


def test_answers_that_several_tasks_judge_count_once(tmp_path: Path) -> None:
    """The mean of three tasks that judge the same answers alike has the interval of one."""
    tasks = [TaskConfig(name=name, kind="vision", type=name, path="-") for name in ("exact_match", "anls", "rouge_l")]
    for task in tasks:
        for model, share in {"adapted": 0.8, "distilled": 0.7}.items():
            write_measured(tmp_path, task, model, correct(share, 60))
    models = ["adapted", "distilled"]
    one, three = (summarize(tmp_path, models, settings(*tasks[:n])).distilled.retention for n in (1, 3))
    assert one is not None and three is not None and [*three.ci] == pytest.approx([*one.ci])


def test_bootstrap_within_strata_keeps_their_sizes() -> None:
    """Every resample has the strata's own numbers of items, and items still vary within one."""
    strata = ["a"] * 3 + ["b"] * 7
    sizes_KI = np.array([[stratum == "a" for stratum in strata]], dtype=float)
    assert np.allclose(resample(sizes_KI, np.ones((1, 10)), 200, [1], strata), 0.3)
    assert resample(np.arange(10.0)[None], np.ones((1, 10)), 200, [1], strata).std() > 0


def test_mme_stays_within_what_is_possible(tmp_path: Path) -> None:
    """All right is 2800 of 2800, though categories differ in size; of others two images or so may be wrong."""
    task = TaskConfig(name="mme", kind="vision", type="mme", path="-")
    sizes = {f"perception {i}": 5 + 10 * i for i in range(10)} | dict.fromkeys(sorted(COGNITION), 8)
    images = [(category, str(image)) for category, size in sizes.items() for image in range(size)]
    rows = [image for image in images for _ in range(2)]
    for model, odd in (("adapted", "no"), ("distilled", "yes")):
        columns = {
            "item": [str(i) for i in range(len(rows))],
            "category": [category for category, _ in rows],
            "group": [group for _, group in rows],
            "gold": ["yes"] * len(rows),
            "prediction": ["yes", odd] * len(images),
        }
        write_items(items_path(tmp_path, "mme", model), columns, None)
    models = summarize(tmp_path, ["adapted", "distilled"], settings(task)).tasks["mme"].models
    assert [models["distilled"].score.value, models["distilled"].score.ci.high] == pytest.approx([2800] * 2)
    assert 2800 * (1 - 4 / len(images)) < models["distilled"].score.ci.low < 2800 * (1 - 2 / len(images))
    assert models["adapted"].score.value == pytest.approx(700)


@pytest.mark.parametrize(("images", "wider"), [(50, True), (1, False)])
def test_items_that_share_an_image_count_for_less(tmp_path: Path, images: int, wider: bool) -> None:
    """The score stays, its interval grows by √8 where 8 questions stand and fall together; one image tells nothing."""
    found = {}
    for name, shared in (("alone", False), ("together", True)):
        columns = {
            "item": [str(i) for i in range(400)],
            "prediction": ["right" if i // 8 % 2 else "wrong" for i in range(400)],
            "answers": [["right"]] * 400,
        }
        clusters = {CLUSTER: [str(i * images // 400) for i in range(400)]} if shared else {}
        write_items(items_path(tmp_path / name, "digits", "adapted"), columns | clusters, None)
        found[name] = summarize(tmp_path / name, ["adapted"], settings(DIGITS)).tasks["digits"].models["adapted"].score
    alone, together = (found[name].ci.high - found[name].ci.low for name in found)
    assert found["alone"].value == found["together"].value == 0.5
    assert together / alone == pytest.approx(math.sqrt(8) if wider else 1, rel=0.15)


def test_recovery_and_retention_by_hand(tmp_path: Path) -> None:
    """accuracy (0.5 − 0.3)/(0.6 − 0.3) = 2/3; retention 0.81/0.9 = 0.9; plain CE (0.4 − 0.3)/0.3 = 1/3."""
    for model, share in {"teacher": 0.6, "adapted": 0.3, "plain_ce": 0.4, "distilled": 0.5}.items():
        write_measured(tmp_path, CLOZE, model, correct(share, 400))
    for model, share in {"adapted": 0.9, "plain_ce": 0.9, "distilled": 0.81}.items():
        write_measured(tmp_path, DIGITS, model, correct(share, 200))
    result = summarize(tmp_path, ["teacher", "adapted", "plain_ce", "distilled"], settings(CLOZE, DIGITS))
    cloze, means, ahead = result.tasks["cloze"], result.distilled, result.over["plain_ce"]
    assert (cloze.kind, cloze.metric, cloze.items) == ("language", "acc", 400)
    assert cloze.distilled is not None and cloze.distilled == cloze.models["distilled"].quotient
    assert cloze.distilled.value == pytest.approx(2 / 3) and cloze.distilled.ci.low < 2 / 3 < cloze.distilled.ci.high
    # one task: the mean is its recovery
    assert means.recovery is not None and means.recovery.value == pytest.approx(2 / 3)
    assert list(means.recovery.ci) == pytest.approx(list(cloze.distilled.ci))
    assert means.retention is not None and means.retention.value == pytest.approx(0.9)
    of_control = result.models["plain_ce"].recovery
    assert of_control is not None and of_control.value == pytest.approx(1 / 3)
    assert ahead.recovery is not None and ahead.retention is not None
    assert ahead.recovery.value == pytest.approx(1 / 3) and ahead.recovery.is_positive
    assert ahead.retention.value == pytest.approx((0.81 - 0.9) / 0.9) and ahead.retention.is_positive is False
    assert {model: over.value for model, over in cloze.over.items()} == pytest.approx({"adapted": 0.2, "plain_ce": 0.1})
    assert result.verdict.holds is False
    assert result.verdict.parts == {"recovery": False, "retention": False, "plain_ce": True}
    assert "90% is needed" in result.verdict.text and "99% is needed" in result.verdict.text
    assert read_recovery(tmp_path) == result


def test_any_other_model_is_compared_item_by_item(tmp_path: Path) -> None:
    """A variant that misses 8 items of 400 that the distilled model has, and errs with it on the rest, is behind beyond
    noise, though the intervals of both overlap; two that are alike are not told apart, and one is no control.
    """
    right = {"teacher": 320, "adapted": 120, "distilled": 300, "variant": 292, "alike": 300}
    for model, count in right.items():
        write_measured(tmp_path, CLOZE, model, [float(i < count) for i in range(400)])
        if model != "teacher":
            write_measured(tmp_path, DIGITS, model, [float(i < 1.2 * count) for i in range(400)])
    result = summarize(tmp_path, list(right), settings(CLOZE, DIGITS))
    assert result.over.keys() == {"adapted", "variant", "alike"}
    ahead, own = result.over["variant"], result.models["variant"]
    for found, difference in ((own.recovery, ahead.recovery), (own.retention, ahead.retention)):
        assert found is not None and difference is not None and difference.is_positive
    assert own.recovery is not None and result.distilled.recovery is not None
    assert own.recovery.ci.high > result.distilled.recovery.ci.low  # so apart they would say nothing
    assert ahead.recovery is not None and ahead.recovery.value == pytest.approx(8 / 200)
    assert ahead.retention is not None and ahead.retention.value == pytest.approx((180 - 175) / 72, abs=0.02)
    assert [one and one.is_positive for _, one in result.over["alike"].items()] == [None, None]
    assert result.tasks["cloze"].over["variant"].value == pytest.approx(8 / 400)
    assert "no control tells" in result.verdict.text


def test_perplexity_recovers_in_nats_with_the_sign_turned(tmp_path: Path) -> None:
    """nats 3 (teacher), 9 (adapted), 4 (distilled): (9 − 4)/(9 − 3) = 5/6 is back, though lower is better."""
    tokens = [10.0] * 100
    noise = np.random.default_rng(0).normal(size=100) * 0.1
    for model, nats in {"teacher": 3.0, "adapted": 9.0, "distilled": 4.0, "plain_ce": 10.0}.items():
        write_measured(tmp_path, TEXT, model, list((nats + noise) * 10), tokens)
    task = summarize(tmp_path, ["teacher", "adapted", "plain_ce", "distilled"], settings(TEXT)).tasks["text"]
    assert task.distilled is not None and task.distilled.value == pytest.approx(5 / 6)
    of_control = task.models["plain_ce"].quotient
    assert of_control is not None and of_control.value == pytest.approx(-1 / 6)  # it lost still more
    assert task.over["plain_ce"].value == pytest.approx(6)  # better is above 0
    score = {model: entry.score.value for model, entry in task.models.items()}
    assert score["teacher"] < score["distilled"] < score["adapted"] < score["plain_ce"]
    assert task.higher_is_better is False


@pytest.mark.parametrize(
    ("of_control", "holds", "said"),
    [(0.4, True, "The claim holds: 98% ["), (0.595, None, "leaves open whether the teacher was needed")],
)
def test_a_control_that_does_as_well_leaves_the_claim_open(
    of_control: float, holds: bool | None, said: str, tmp_path: Path
) -> None:
    """Language back and vision kept; a recovery that plain cross-entropy reaches too is no evidence for the method."""
    levels = {"teacher": 0.6, "adapted": 0.3, "plain_ce": of_control, "distilled": 0.595}
    for model, share in levels.items():
        write_measured(tmp_path, CLOZE, model, correct(share, 2000))
        if model != "teacher":
            write_measured(tmp_path, DIGITS, model, correct(0.9, 300))
    verdict = summarize(tmp_path, list(levels), settings(CLOZE, DIGITS)).verdict
    assert verdict.holds is holds and said in verdict.text


def test_no_wild_number_where_nothing_was_lost(tmp_path: Path) -> None:
    """teacher − adapted within noise, or negative: recovery is null and says why; the claim is not decided."""
    random = np.random.default_rng(0)
    for model in ("teacher", "adapted", "distilled"):
        write_measured(tmp_path, CLOZE, model, [float(x) for x in random.random(200) < 0.5])
    result = summarize(tmp_path, ["teacher", "adapted", "distilled"], settings(CLOZE))
    assert result.tasks["cloze"].distilled is None
    assert "no loss to recover beyond noise" in (result.tasks["cloze"].reason or "")
    assert result.reasons["recovery"] == "no loss to recover beyond noise, on one task"
    assert result.verdict.holds is None and "recovery has no value" in result.verdict.text


def test_a_gain_of_the_start_is_seen_item_by_item(tmp_path: Path) -> None:
    """Of 200 items it has 20 more than the teacher and none less: beyond noise, though both intervals overlap."""
    for model, share in {"teacher": 0.5, "adapted": 0.6, "distilled": 0.6}.items():
        write_measured(tmp_path, CLOZE, model, correct(share, 200))
    result = summarize(tmp_path, ["teacher", "adapted", "distilled"], settings(CLOZE))
    lost, models = result.tasks["cloze"].lost, result.tasks["cloze"].models
    assert models["teacher"].score.ci.high > models["adapted"].score.ci.low
    assert lost is not None and lost.value == pytest.approx(-0.1)
    assert f"adapted is better there than teacher by {(-lost).points(1)} points" in result.verdict.text


@pytest.mark.parametrize(("items", "holds"), [(40, None), (400, True)])
def test_items_that_are_all_alike_decide_where_they_are_enough(tmp_path: Path, items: int, holds: bool | None) -> None:
    """Of forty that show no change some of a hundred others may: too few for 99%."""
    for model in ("teacher", "adapted", "distilled"):
        write_measured(tmp_path, DIGITS, model, correct(0.8, items))
    result = summarize(tmp_path, ["teacher", "adapted", "distilled"], settings(DIGITS))
    kept = result.distilled.retention
    assert kept is not None and kept.ci.low < kept.value == 1 < kept.ci.high
    assert result.verdict.parts["retention"] is holds


def test_one_item_decides_nothing(tmp_path: Path) -> None:
    """Of one long text, or one picture, all resamples are the same: no width of an interval tells of noise there."""
    for model, nats in (("teacher", 100.0), ("adapted", 110.0), ("distilled", 101.0), ("plain_ce", 109.0)):
        write_measured(tmp_path, TEXT, model, [nats], [50.0])
        write_measured(tmp_path, CLOZE, model, correct(0.5, 2))
        write_measured(tmp_path, DIGITS, model, [1.0])
    models = ["teacher", "adapted", "distilled", "plain_ce"]
    result = summarize(tmp_path, models, settings(TEXT, DIGITS))
    assert result.verdict.holds is None and not result.verdict.exceptions
    for task in result.tasks.values():
        assert task.distilled is None and not task.over and "of one item there is no interval" in str(task.reason)
        assert not task.in_mean
    assert "not judged alone" not in result.verdict.text and "counts in the mean" not in result.verdict.text
    assert result.distilled.recovery is None and result.distilled.retention is None
    assert "text: of one item" not in summarize(tmp_path, models, settings(TEXT, CLOZE)).reasons["recovery"]


def test_a_nan_of_the_users_own_is_the_same_item(tmp_path: Path) -> None:
    """A column beside the type's own may hold any number; another number is another item."""
    for other, refused in ((math.nan, nullcontext()), (1.0, pytest.raises(UserError, match="different items"))):
        for model, number in (("teacher", math.nan), ("adapted", other)):
            write_measured(tmp_path, CLOZE, model, correct(0.5, 10))
            path = items_path(tmp_path, "cloze", model)
            write_items(path, read_columns(path) | {"score": [number, *range(9)]}, None)
        with refused:
            assert summarize(tmp_path, ["teacher", "adapted"], settings(CLOZE)).tasks["cloze"].items == 10


def test_models_that_are_missing_leave_fields_null(tmp_path: Path) -> None:
    """Any subset works, and other models are measured beside."""
    write_measured(tmp_path, CLOZE, "adapted", correct(0.3, 50))
    write_measured(tmp_path, CLOZE, "interpolated", correct(0.4, 50))
    result = summarize(tmp_path, ["adapted", "interpolated"], settings(CLOZE))
    assert result.measured == list(result.tasks["cloze"].models) == ["adapted", "interpolated"]
    assert result.tasks["cloze"].distilled is None and not result.over
    assert result.tasks["cloze"].reason == "not measured: teacher, distilled"


@pytest.mark.parametrize("absent", ["distilled", "plain_ce", "adapted"])
def test_a_mean_is_over_the_same_tasks_for_all_models(tmp_path: Path, absent: str) -> None:
    """One that was measured on some of them has none, and is compared with none; without a reference nobody has one."""
    other, forms = CLOZE.model_copy(update={"name": "other"}), DIGITS.model_copy(update={"name": "forms"})
    shares = {"teacher": 0.8, "adapted": 0.4, "plain_ce": 0.5, "distilled": 0.7}
    for task in (CLOZE, other, DIGITS, forms):
        for model, share in shares.items():
            if not (model == absent and task in (other, forms)) and (model != "teacher" or task.kind == "language"):
                write_measured(tmp_path, task, model, correct(share, 200))
    result = summarize(tmp_path, list(shares), settings(CLOZE, other, DIGITS, forms))
    none = Means(None, None)
    for model in ("distilled", "plain_ce"):
        found = result.models[model]
        assert found == none if absent in (model, "adapted") else None not in (found.recovery, found.retention)
    assert result.over["plain_ce"] == none
    if absent != "plain_ce":
        said = {"recovery": f"other: not measured: {absent}", "retention": f"forms: not measured: {absent}"}
        assert result.reasons == said and said["recovery"] in result.verdict.text and result.verdict.holds is None


def test_perplexities_over_different_tokens_are_not_compared(tmp_path: Path) -> None:
    """Nats per token of two tokenizers have no common unit."""
    for model, tokens in {"teacher": 10.0, "adapted": 10.0, "distilled": 12.0}.items():
        write_measured(tmp_path, TEXT, model, [30.0 if model == "teacher" else 60.0] * 20, [tokens] * 20)
    task = summarize(tmp_path, ["teacher", "adapted", "distilled"], settings(TEXT)).tasks["text"]
    assert task.distilled is None and "different numbers of tokens" in (task.reason or "")
    assert task.over == {} and not task.in_mean


def test_nats_of_texts_that_were_cut_differently_are_not_compared(tmp_path: Path) -> None:
    """What was predicted from less before it is no loss; a share has its unit all the same, and its nats have none.

    Of answers of an earlier version nothing is known.
    """
    long, models = [0] * 19, ["teacher", "adapted", "distilled"]
    for config, cut_of_adapted, reason in (
        (TEXT, 128, "128 and 2048"),
        (TEXT, 2048, ""),
        (TEXT, None, ""),
        (CLOZE, 128, ""),
    ):
        for model in models:
            score = correct(0.9, 20) if config is CLOZE else [30.0] * 19 + [20.0]
            lost = score if model == "teacher" else [0.0] * 20 if config is CLOZE else [2 * nats for nats in score]
            write_measured(tmp_path, config, model, lost, [10.0] * 20)
            cut_to = 2048 if model == "teacher" else cut_of_adapted
            path = items_path(tmp_path, config.name, model)
            more = {} if cut_to is None else {"cut_to": [[one] for one in [*long, cut_to]]}
            write_items(path, read_columns(path) | more, None)
        task = summarize(tmp_path, models, settings(config)).tasks[config.name]
        assert (task.distilled is None) == bool(reason) and reason in (task.reason or "")
        assert task.nats is None or "128 and 2048" in (task.nats.reason or "")


def test_models_measured_on_different_items_are_refused(tmp_path: Path) -> None:
    """A paired comparison needs pairs."""
    write_measured(tmp_path, CLOZE, "teacher", correct(0.5, 10))
    write_measured(tmp_path, CLOZE, "adapted", correct(0.5, 9))
    with pytest.raises(UserError, match="different items"):
        summarize(tmp_path, ["teacher", "adapted"], settings(CLOZE))


def test_measured_models_are_found_again(tmp_path: Path) -> None:
    """By the files' names, dots in task names included; of the settings' tasks alone."""
    dotted = CLOZE.model_copy(update={"name": "cloze.easy"})
    for task, model in ((CLOZE, "distilled"), (dotted, "teacher"), (dotted, "other"), (TEXT, "elsewhere")):
        write_measured(tmp_path, task, model, [1.0])
    assert measured_models(tmp_path, settings(CLOZE)) == ["distilled"]
    assert measured_models(tmp_path, settings(CLOZE, dotted)) == ["teacher", "distilled", "other"]


@pytest.mark.parametrize(
    ("models", "references"),
    [
        (("teacher", "adapted", "plain_ce", "distilled"), OF_THE_TEACHER),
        (("teacher", "original_vlm", "fine_tuned", "distilled"), OF_THE_PAPER),
        (("teacher", "fine_tuned", "distilled"), OF_A_NEW_VLM),
        (("teacher", "adapted", "original_vlm", "fine_tuned", "distilled"), OF_THE_TEACHER),
        (("teacher", "original_vlm", "distilled"), OF_THE_PAPER),  # which needs a fine-tuned one, and says so
        (("fine_tuned", "distilled"), OF_THE_PAPER),
        (("teacher", "distilled"), OF_THE_TEACHER),
    ],
)
def test_the_formula_is_that_of_the_models(models: tuple[str, ...], references: References) -> None:
    """What is measured says against what: the adapted model and its teacher, or fine-tuned and original VLM."""
    assert references_among(models) == references


def test_recovery_as_in_the_paper(tmp_path: Path) -> None:
    """(0.564 − 0.471)/(0.57 − 0.471) of language, 0.557/0.592 of vision, over the fine-tuned model."""
    language = {"original_vlm": 0.57, "fine_tuned": 0.471, "distilled": 0.564, "teacher": 0.6}
    vision = {"original_vlm": 0.6, "fine_tuned": 0.592, "distilled": 0.557}
    for task, levels in ((CLOZE, language), (DIGITS, vision)):
        for model, share in levels.items():
            write_measured(tmp_path, task, model, correct(share, 1000))
    result = summarize(tmp_path, list(language), settings(CLOZE, DIGITS))
    assert result.distilled.recovery is not None and result.distilled.retention is not None
    assert result.distilled.recovery.value == pytest.approx(0.093 / 0.099)
    assert result.distilled.retention.value == pytest.approx(0.557 / 0.592)
    assert result.references.formulas == {
        "recovery": "(distilled − fine_tuned) / (original_vlm − fine_tuned)",
        "retention": "distilled / fine_tuned",
    }
    # the fine-tuned model is a control too: it recovers nothing of its own loss
    difference = result.over["fine_tuned"].recovery
    assert difference is not None and difference.value == pytest.approx(0.093 / 0.099)
    assert result.verdict.parts["fine_tuned"] is True and result.verdict.parts["retention"] is False
    assert json.loads((tmp_path / FILE).read_text())["summary"]["references"]["baseline"] == "fine_tuned"
