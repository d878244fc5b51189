"""The verdict on constructed scores: what the means say, and what they would hide."""

from __future__ import annotations

from typing import Any

import pytest

from lingu_ray.evaluation.results import Control, Estimate, Interval, Kind, Means, QuotientName, TaskScores, Verdict
from lingu_ray.evaluation.verdict import judge

FLOORS: dict[QuotientName, float] = {"recovery": 0.9, "retention": 0.99}
ROLES = ["teacher", "adapted", "ce_only", "distilled"]
MEANS = Means(Estimate(0.97, Interval(0.94, 1.01)), Estimate(1.002, Interval(0.99, 1.01)))
BEATEN = Control(
    Means(Estimate(0.8, Interval(0.75, 0.85)), Estimate(1.0, Interval(0.98, 1.02))),
    Estimate(0.17, Interval(0.1, 0.2)),
    True,
)


def estimate(value: float, low: float, high: float) -> Estimate:
    """A value with its interval."""
    return Estimate(value, Interval(low, high))


def task(kind: Kind, share: Estimate | None, **more: Any) -> TaskScores:
    """A task on which the distilled model has this recovery or retention."""
    floor = FLOORS["recovery" if kind == "language" else "retention"]
    known = {"metric": "acc", "is_share": True, "reason": None if share else "no loss", "floor": floor, **more}
    return TaskScores(kind, higher_is_better=True, items=100, models={}, distilled=share, ce_only=None, **known)


GOOD = {
    "cloze": task("language", estimate(0.98, 0.9, 1.05)),
    "digits": task("vision", estimate(1.01, 0.99, 1.03)),
}


def verdict(means: Means = MEANS, control: Control | None = BEATEN, **tasks: TaskScores) -> Verdict:
    """The verdict on two good tasks and these."""
    reasons: dict[QuotientName, str] = {name: "no loss" for name, mean in means.items() if mean is None}
    return judge({**GOOD, **tasks}, means, control, FLOORS, reasons, ROLES)


def test_it_holds_without_exceptions() -> None:
    """Both means in words, the control beside them; nothing else."""
    found = verdict()
    means = "97% [94, 101] of the lost language came back (CE only: 80% [75, 85]), 100.2% [99.0, 101.0] of vision"
    assert found == Verdict(True, f"The claim holds: {means} was kept.") and found.tone == "good"
    assert (found.headline, found.detail) == ("The claim holds", f"{means} was kept.")
    assert verdict(control=None).text.startswith(
        "The claim holds: 97% [94, 101] of the lost language came back, 100.2%"
    )


@pytest.mark.parametrize(
    ("exception", "said"),
    [
        (task("vision", estimate(0.95, 0.915, 0.993)), "retention 95.0% [91.5, 99.3] is below 99%"),
        (task("vision", estimate(0.9, 0.85, 0.94)), "retention 90.0% [85.0, 94.0] is below 99% beyond noise"),
        (task("language", estimate(0.7, 0.5, 0.95)), "recovery 70% [50, 95] is below 90%"),
        (task("language", estimate(-0.2, -0.4, 0.1)), "recovery -20% [-40, 10] is below 90% beyond noise"),
        (
            task("language", None, over_adapted=estimate(-0.03, -0.05, -0.01)),
            "distilled is worse than adapted by 3 [1, 5] points",
        ),
        (
            task(
                "language",
                estimate(0.95, 0.9, 1.0),
                over_ce_only=estimate(-0.5, -0.75, -0.25),
                metric="perplexity",
                is_share=False,
            ),
            "CE only is better by 0.5 [0.25, 0.75] nats per token",
        ),
        (
            task("vision", estimate(1.0, 0.99, 1.01), over_ce_only=estimate(-0.02, -0.035, -0.005)),
            "CE only is better by 2 [0.5, 3.5] points",
        ),
    ],
)
def test_a_task_that_the_means_would_hide_is_named(exception: TaskScores, said: str) -> None:
    """The claim holds by its means, and the verdict says on which task it does not, with the interval."""
    found = verdict(hidden=exception)
    assert found.holds is True and found.tone == "mixed" and found.exceptions == (f"hidden: {said}",)
    assert found.headline == "The claim holds, but not on every task"
    assert found.detail.startswith("97% [94, 101]") and found.detail.endswith(f"; hidden: {said}.")


def test_noise_alone_is_no_exception() -> None:
    """At the floor, with an interval that reaches below it; worse than adapted or CE only within noise: not named."""
    at_floor = task("vision", estimate(0.99, 0.95, 1.03), over_ce_only=estimate(-0.01, -0.03, 0.01))
    unlost = task("language", None, over_adapted=estimate(-0.01, -0.03, 0.01))
    found = verdict(at_floor=at_floor, unlost=unlost)
    assert found.holds is True and not found.exceptions
    assert found.detail.endswith("of vision was kept; not judged: unlost.")


def test_every_exception_is_named() -> None:
    """A task may have several; all are in the sentence, in the order of the tasks."""
    both = task("vision", estimate(0.9, 0.8, 0.95), over_ce_only=estimate(-0.1, -0.2, -0.05))
    found = verdict(first=both, second=task("language", estimate(0.5, 0.3, 0.7)))
    assert [clause.partition(":")[0] for clause in found.exceptions] == ["first", "first", "second"]
    assert all(clause in found.text for clause in found.exceptions)


def test_it_does_not_hold() -> None:
    """Each failed part is named, the tasks after them."""
    means = Means(estimate(0.8, 0.7, 0.9), estimate(0.95, 0.9, 0.99))
    level = Control(BEATEN.means, estimate(0.01, -0.05, 0.06), False)
    found = verdict(means, level, poor=task("vision", estimate(0.8, 0.7, 0.9)))
    assert found.holds is False and found.tone == "bad"
    assert found.text.startswith("The claim does not hold: 80% [70, 90] of the lost language came back")
    for part in ("recovery is below 90%", "retention is below 99%", "CE-only is not beaten", *found.exceptions):
        assert part in found.text
    assert len(found.exceptions) == 1


def test_what_cannot_be_judged_still_names_losses() -> None:
    """Without a mean there is no claim, but a task that lost is told."""
    found = verdict(Means(None, MEANS.retention), None, poor=task("vision", estimate(0.8, 0.7, 0.9)))
    assert found.holds is None and found.tone == "open"
    assert found.text.startswith("The claim cannot be judged: recovery has no value (no loss); poor: retention 80.0%")


def test_models_that_the_claim_is_not_about() -> None:
    """Without the three models there is nothing to judge: the sentence says what was measured."""
    found = judge(GOOD, Means(None, None), None, FLOORS, {}, ["adapted", "mine"])
    assert found.holds is None and found.detail == ""
    assert found.text.startswith("Scores of adapted, mine on 2 tasks.") and "teacher, distilled" in found.text
