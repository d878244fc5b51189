"""The verdict on constructed scores: what intervals say, and what the means would hide."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lingu_ray.evaluation.results import (
    Estimate,
    Interval,
    Kind,
    Means,
    QuotientName,
    TaskScores,
    Verdict,
)
from lingu_ray.evaluation.roles import OF_THE_PAPER, OF_THE_TEACHER, References
from lingu_ray.evaluation.verdict import judge

FLOORS: dict[QuotientName, float] = {"recovery": 0.9, "retention": 0.99}
ROLES = ["teacher", "adapted", "same_ce", "plain_ce", "distilled"]


def estimate(value: float, low: float, high: float) -> Estimate:
    """A value with its interval."""
    return Estimate(value, Interval(low, high))


BACK, KEPT = estimate(0.97, 0.94, 1.01), estimate(1.002, 0.992, 1.01)
BEATEN = Means(estimate(0.17, 0.1, 0.2), None)


def task(kind: Kind, share: Estimate | None, **more: Any) -> TaskScores:
    """A task on which the distilled model has this recovery or retention."""
    floor = FLOORS["recovery" if kind == "language" else "retention"]
    known = {"metric": "acc", "is_share": True, "reason": None if share else "no loss", "floor": floor, **more}
    return TaskScores(kind, higher_is_better=True, items=400, clusters=100, models={}, distilled=share, **known)


GOOD = {
    "cloze": task("language", estimate(0.98, 0.9, 1.05)),
    "digits": task("vision", estimate(1.01, 0.99, 1.03)),
}


def verdict(
    back: Estimate | None = BACK,
    kept: Estimate | None = KEPT,
    controls: dict[str, Means] | None = None,
    references: References = OF_THE_TEACHER,
    **tasks: TaskScores,
) -> Verdict:
    """The verdict on two good tasks and these."""
    means = Means(back, kept)
    reasons: dict[QuotientName, str] = {name: "no loss" for name, mean in means.items() if mean is None}
    beside = {"same_ce": BEATEN} if controls is None else controls
    return judge({**GOOD, **tasks}, means, beside, FLOORS, reasons, [*ROLES, *references], references)


@pytest.mark.parametrize(
    ("difference", "share", "said"),
    [
        (estimate(1523.4, -87.25, 2400.0), False, "1,523 [-87.2, 2,400] mme"),
        (estimate(0.01234, -0.0, 0.5), False, "0.0123 [0, 0.5] mme"),
        (estimate(-0.0, -0.0, -0.0), False, "0 [0, 0] mme"),
        (estimate(-0.0001, -0.02, 0.0), True, "0.0 [-2.0, 0.0] points"),
    ],
)
def test_differences_are_numbers_that_are_read(difference: Estimate, share: bool, said: str) -> None:
    """Of a large scale, as MME's, in whole numbers; no zero has a sign."""
    shown = replace(task("vision", None), metric="mme", is_share=share)
    assert shown.amount(difference) == said


def test_zero_has_no_sign() -> None:
    """A recovery that rounds to 0."""
    assert estimate(-0.001, -0.002, 0.001).percent() == "0% [0, 0]"


def test_it_holds_without_exceptions() -> None:
    """Three parts, each in words with its interval; nothing else."""
    found = verdict()
    said = (
        "97% [94, 101] of the lost language came back; 100.2% [99.2, 101.0] of vision was kept; "
        "17 [10, 20] points more came back than by the same cross-entropy without the teacher"
    )
    parts = {"recovery": True, "retention": True, "same_ce": True}
    assert found == Verdict(True, f"The claim holds: {said}.", (), parts) and found.tone == "good"
    assert (found.headline, found.detail) == ("The claim holds", f"{said}.")


def test_few_items_are_named() -> None:
    """Of five answers an interval says little; tasks that no mean has say nothing.

    Items that share a passage count once.
    """
    few = replace(task("language", estimate(1, 1, 1)), items=5, clusters=5)
    found = verdict(mine=few, texts=replace(few, items=290, clusters=29), other=replace(few, in_mean=False))
    words = "; intervals are too narrow with so few items: mine 5, texts 290 in 29 clusters."
    assert found.holds and found.text.endswith(words)
    assert "few items" not in verdict(mine=replace(few, items=30, clusters=30)).text


LEVEL = Means(estimate(0.02, -0.02, 0.06), None)
WORSE = Means(estimate(-0.05, -0.08, -0.02), None)
UNKNOWN = Means(None, None)


@pytest.mark.parametrize(
    ("given", "holds", "said"),
    [
        # every point estimate is above its floor, and an interval reaches below it
        ({"back": estimate(0.95, 0.85, 1.05)}, None, "95% [85, 105] of the lost language came back, which leaves open"),
        ({"kept": estimate(1.0, 0.98, 1.02)}, None, "100.0% [98.0, 102.0] of vision was kept, which leaves open"),
        ({"controls": {"same_ce": LEVEL}}, None, "2 [-2, 6] points more came back than by the same cross-entropy"),
        ({"controls": {}}, None, "no control tells whether the teacher was needed"),
        # a model of another kind is no control, however far behind it is
        ({"controls": {"adapted": BEATEN, "mine": BEATEN}}, None, "no control tells whether the teacher was needed"),
        ({"back": None}, None, "recovery has no value (no loss)"),
        ({"kept": None}, None, "retention has no value (no loss)"),
        # an interval is below
        ({"back": estimate(0.8, 0.7, 0.89)}, False, "only 80% [70, 89] of the lost language came back, and 90% is"),
        ({"kept": estimate(0.95, 0.92, 0.98)}, False, "only 95.0% [92.0, 98.0] of vision was kept, and 99% is needed"),
        (
            {"kept": estimate(0.99, 0.985, 0.996)},
            False,
            "only 99.0% [98.5, 99.6] of vision was kept, a measurable drop",
        ),
        (
            {"controls": {"plain_ce": WORSE}},
            False,
            "the teacher was not needed: 5 [2, 8] points more came back by plain",
        ),
        # one control that is beaten does not make up for one that is not
        ({"controls": {"same_ce": BEATEN, "plain_ce": LEVEL}}, None, "2 [-2, 6] points more came back than by plain"),
        # one that cannot be compared says so, and hides no other
        ({"controls": {"same_ce": UNKNOWN}}, None, "the same cross-entropy without the teacher was not measured on"),
        ({"controls": {"same_ce": UNKNOWN, "plain_ce": WORSE}}, False, "the teacher was not needed"),
        # a part that fails is enough, whatever else is open
        ({"back": estimate(0.8, 0.7, 0.89), "controls": {}}, False, "only 80%"),
        # the whole interval reaches the floor, though it is below 1
        ({"kept": estimate(0.995, 0.992, 0.998)}, True, "99.5% [99.2, 99.8] of vision was kept"),
    ],
)
def test_each_part_is_judged_by_its_interval(given: dict[str, Any], holds: bool | None, said: str) -> None:
    """Yes, no, or not decided; what decides the headline is said first."""
    found = verdict(**given)
    assert found.holds is holds and said in found.text
    headline = {True: "The claim holds", False: "The claim does not hold", None: "The claim is not decided"}[holds]
    assert found.headline == headline and found.tone == {True: "good", False: "bad", None: "open"}[holds]
    assert holds or found.detail.startswith(said[:12])
    assert holds is None or "What would decide it" not in found.text


@pytest.mark.parametrize(
    ("given", "needed"),
    [
        # half the interval is 0.1 and the distance to the floor 0.05: four times the items make it 0.05
        ({"back": estimate(0.95, 0.85, 1.05)}, "4 times the language items, or runs with more seeds"),
        ({"kept": estimate(1.0, 0.98, 1.02)}, "4 times the vision items, or runs with more seeds"),
        # below the floor the drop is to be seen against 1
        ({"kept": estimate(0.98, 0.94, 1.02)}, "4 times the vision items, or runs with more seeds"),
        # between the floor and 1 by what needs fewer: 0.026 within 0.006 of the floor, 0.034 within 0.004 of 1
        ({"kept": estimate(0.996, 0.97, 1.03)}, "19 times the vision items, or runs with more seeds"),
        ({"controls": {"same_ce": LEVEL}}, "4 times the language items, or runs with more seeds"),
        ({"back": estimate(0.9, 0.8, 1.0)}, "runs with more seeds"),
        ({"controls": {}}, "a control, trained without the teacher (controls: [same_ce, plain_ce])"),
    ],
)
def test_what_would_decide_it_is_said(given: dict[str, Any], needed: str) -> None:
    """So many times the items where the value is clear of the floor, seeds, or the control that is missing."""
    assert verdict(**given).text.endswith(f". What would decide it: {needed}.")


@pytest.mark.parametrize(
    ("exception", "said"),
    [
        (task("vision", estimate(0.95, 0.915, 0.993)), "a measurable drop, retention 95.0% [91.5, 99.3]"),
        (
            task("vision", estimate(0.995, 0.993, 0.998), over={"adapted": estimate(-0.004, -0.006, -0.002)}),
            "a measurable drop of 0.4 [0.2, 0.6] points, retention 99.5% [99.3, 99.8]",
        ),
        (task("language", estimate(0.7, 0.5, 0.85)), "recovery 70% [50, 85] is below 90%"),
        (
            task("language", None, over={"adapted": estimate(-0.03, -0.05, -0.01)}),
            "distilled is worse than adapted by 3.0 [1.0, 5.0] points",
        ),
        (
            task(
                "language",
                estimate(0.95, 0.9, 1.0),
                over={"plain_ce": estimate(-0.5, -0.75, -0.25)},
                metric="perplexity",
                is_share=False,
            ),
            "plain cross-entropy is better by 0.5 [0.25, 0.75] nats per token",
        ),
        (
            task("vision", estimate(1.0, 0.99, 1.01), over={"same_ce": estimate(-0.02, -0.035, -0.005)}),
            "the same cross-entropy without the teacher is better by 2.0 [0.5, 3.5] points",
        ),
    ],
)
def test_a_task_that_the_means_would_hide_is_named(exception: TaskScores, said: str) -> None:
    """The claim holds by its means, and the verdict says on which task it does not, with the interval."""
    found = verdict(hidden=exception)
    assert found.holds is True and found.tone == "mixed" and found.exceptions == (f"hidden: {said}",)
    assert found.headline == "The claim holds, but not on every task"
    assert found.detail.startswith("97% [94, 101]") and found.detail.endswith(f"; hidden: {said}.")


def test_a_floor_of_nothing_is_a_floor() -> None:
    """With `min_recovery: 0` a task that fell further, beyond noise, is named."""
    fallen = replace(task("language", estimate(-0.4, -0.6, -0.2)), floor=0.0)
    assert verdict(hidden=fallen).exceptions == ("hidden: recovery -40% [-60, -20] is below 0%",)


def test_noise_alone_is_no_exception() -> None:
    """An interval that reaches the floor and 1; worse than others within noise: not named."""
    below = task("vision", estimate(0.97, 0.93, 1.01), over={"plain_ce": estimate(-0.01, -0.03, 0.01)})
    little = task("language", estimate(0.7, 0.5, 0.95))
    unlost = task("language", None, over={"adapted": estimate(-0.01, -0.03, 0.01)})
    found = verdict(below=below, little=little, unlost=unlost)
    assert found.holds is True and not found.exceptions
    assert found.detail.endswith("without the teacher; not judged alone: unlost.")


def test_a_task_of_no_mean_is_not_said_to_be_judged_by_one() -> None:
    """ "Not judged alone" is said of what a mean judges; a task that counts in none is judged by nothing."""
    counted = task("language", None)
    assert verdict(counted=counted, shown=replace(counted, in_mean=False)).detail.endswith("not judged alone: counted.")


def test_a_task_that_makes_the_sum_of_losses_smaller_is_named() -> None:
    """The start is better than the original beyond noise: named with the setting that leaves it out.

    Whether the mean is larger for it depends on the task's gain, and there may be no mean at all.
    """
    gained = replace(task("language", None), lost=estimate(-0.2, -0.25, -0.15))
    said = (
        "gained counts in the mean recovery, and makes its sum of losses smaller: adapted is better there than teacher "
        "by 20.0 [15.0, 25.0] points (leave it out: tasks.gained.in_mean=false)"
    )
    assert said in verdict(gained=gained).detail
    assert verdict(gained=gained).holds is True and said in verdict(None, gained=gained).detail
    noise = replace(gained, lost=estimate(-0.2, -0.45, 0.05))
    for unnamed in (replace(gained, in_mean=False), replace(gained, kind="vision"), replace(gained, lost=None), noise):
        assert "sum of losses" not in verdict(gained=unnamed).detail


def test_every_exception_is_named() -> None:
    """A task may have several; all are in the sentence, in the order of the tasks, whatever the verdict."""
    both = task("vision", estimate(0.9, 0.8, 0.95), over={"same_ce": estimate(-0.1, -0.2, -0.05)})
    found = verdict(None, first=both, second=task("language", estimate(0.5, 0.3, 0.7)))
    assert found.holds is None
    assert [clause.partition(":")[0] for clause in found.exceptions] == ["first", "first", "second"]
    assert all(clause in found.text for clause in found.exceptions)


def test_the_fine_tuned_model_is_baseline_and_control() -> None:
    """In the paper's setting a loss against it is named once, as what it is: a drop."""
    drop = task("vision", estimate(0.9, 0.8, 0.95), over={"fine_tuned": estimate(-0.05, -0.09, -0.01)})
    found = verdict(controls={"fine_tuned": BEATEN}, references=OF_THE_PAPER, drop=drop)
    assert found.holds is True and "17 [10, 20] points more came back than by plain fine-tuning" in found.text
    assert found.exceptions == ("drop: a measurable drop of 5.0 [1.0, 9.0] points, retention 90.0% [80.0, 95.0]",)


def test_models_that_the_claim_is_not_about() -> None:
    """Without the three models there is nothing to judge: the sentence says what was measured."""
    found = judge(GOOD, Means(None, None), {}, FLOORS, {}, ["adapted", "mine"], OF_THE_TEACHER)
    assert found.holds is None and found.detail == ""
    assert found.text.startswith("Scores of adapted, mine on 2 tasks.") and "teacher, distilled" in found.text
