"""Whether the claim holds: language came back, vision stayed, and the teacher was needed for it.

It holds where the mean recovery over the language tasks and the mean retention over the vision tasks reach their floors
(`evaluation.min_recovery`, `evaluation.min_retention`), and the whole interval of the difference to the CE-only model's
recovery, where that one was measured, is above 0.

A mean can hide a loss, so the verdict also names every task that speaks against the claim:

- its own recovery or retention is below the floor of its kind; `beyond noise` where its whole interval is;
- adapting took nothing from it, so that it has no recovery, and the distilled model scores below the adapted one beyond
  noise;
- the CE-only model scores better on it, beyond noise.

Tasks without a value that show no such loss are named as not judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lingu_ray.evaluation.results import Control, Estimate, Means, QuotientName, TaskScores, Verdict
from lingu_ray.evaluation.roles import ADAPTED, DISTILLED, TEACHER


def judge(
    tasks: Mapping[str, TaskScores],
    distilled: Means,
    control: Control | None,
    floors: Mapping[QuotientName, float],
    reasons: Mapping[QuotientName, str],
    models: Sequence[str],
) -> Verdict:
    """The verdict on the measured tasks.

    Args:
        tasks: by name.
        distilled: the distilled model's means.
        control: the CE-only model beside it, where it was measured.
        floors: what recovery and retention must reach.
        reasons: why a mean that is None has no value.
        models: all that were measured; without the three that the claim is about there is nothing to judge.
    """
    if absent := [name for name in (TEACHER, ADAPTED, DISTILLED) if name not in models]:
        count = f"{len(tasks)} task{'s' if len(tasks) > 1 else ''}"
        needed = f"Recovery and retention need models of the names {', '.join(absent)} too."
        return Verdict(None, f"Scores of {', '.join(models)} on {count}. {needed}")
    exceptions = tuple(clause for name, task in tasks.items() for clause in _exceptions(name, task))
    if unknown := [f"{name} has no value ({reasons[name]})" for name, mean in distilled.items() if mean is None]:
        return Verdict(None, f"The claim cannot be judged: {_joined(unknown, exceptions)}.", exceptions)
    failures = _failures(distilled, control, floors)
    found = _found(distilled, control)
    if failures:
        text = f"The claim does not hold: {_joined([found, *failures], exceptions)}."
    elif exceptions:
        text = f"The claim holds, but not on every task: {_joined([found], exceptions)}."
    else:
        text = f"The claim holds: {found}."
    return Verdict(not failures, text.removesuffix(".") + _not_judged(tasks) + ".", exceptions)


def _exceptions(name: str, task: TaskScores) -> Iterator[str]:
    """What on this task speaks against the claim."""
    quotient, floor = task.distilled, task.floor
    if quotient is not None and floor is not None and quotient.value < floor:
        sure = " beyond noise" if quotient.ci.high < floor else ""
        yield f"{name}: {task.quotient_name} {quotient.percent(task.digits)} is below {_percent(floor)}{sure}"
    if task.kind == "language" and quotient is None and _is_loss(task.over_adapted):
        yield f"{name}: distilled is worse than adapted by {_amount(task.over_adapted, task)}"
    if _is_loss(task.over_ce_only):
        yield f"{name}: CE only is better by {_amount(task.over_ce_only, task)}"


def _is_loss(gain: Estimate | None) -> bool:
    """Whether a gain is negative beyond noise."""
    return gain is not None and gain.ci.high < 0


def _amount(gain: Estimate | None, task: TaskScores) -> str:
    """A loss without its sign, in the metric's units: `2.5 [0.4, 4.6] points`."""
    assert gain is not None  # it was seen to be a loss
    scale, unit = (100, "points") if task.is_share else (1, task.unit)
    low, high = (f"{-scale * x:.3g}" for x in (gain.ci.high, gain.ci.low))
    return f"{-scale * gain.value:.3g} [{low}, {high}] {unit}"


def _failures(distilled: Means, control: Control | None, floors: Mapping[QuotientName, float]) -> list[str]:
    """What of the claim's three parts does not hold."""
    failures = [
        f"{name} is below {_percent(floors[name])}"
        for name, mean in distilled.items()
        if mean is not None and mean.value < floors[name]
    ]
    if control is not None and not control.beaten:
        failures.append("CE-only is not beaten beyond the interval")
    return failures


def _found(distilled: Means, control: Control | None) -> str:
    """Both means in words."""
    assert distilled.recovery is not None and distilled.retention is not None  # else the claim cannot be judged
    beside = f" (CE only: {control.means.recovery.percent()})," if control and control.means.recovery else ","
    kept = f"{distilled.retention.percent(1)} of vision was kept"
    return f"{distilled.recovery.percent()} of the lost language came back{beside} {kept}"


def _percent(share: float) -> str:
    return f"{100 * share:.4g}%"


def _joined(parts: Sequence[str], exceptions: Sequence[str]) -> str:
    return "; ".join([*parts, *exceptions])


def _not_judged(tasks: Mapping[str, TaskScores]) -> str:
    names = [name for name, task in tasks.items() if task.distilled is None and not list(_exceptions(name, task))]
    return f"; not judged: {', '.join(names)}" if names else ""
