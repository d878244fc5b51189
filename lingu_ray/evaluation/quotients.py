"""Recovery and retention, of a task and in the mean, on the items and on every resample of them.

For a language task `recovery = (distilled − adapted) / (teacher − adapted)`, for a vision task
`retention = distilled / adapted`. Levels are accuracies; for perplexity the level is the log-perplexity (nats per
token): lower is better, and the quotient takes it with the sign turned: `(adapted − distilled) / (adapted − teacher)`
in nats. So 1 means all of the loss came back, 0 none, below 0 further loss, above 1 better than the teacher.

Where an accuracy comes with likelihoods (the last word, multiple choice), the task has a second recovery, in nats of
its right answers. Nats move with every item and resolve far smaller losses, but they also move where no answer changes,
as with a habit of wording. So the accuracy, which published tables have, counts in the mean, unless nats were chosen
before anything was measured (`evaluation.recovery_in`).

Mean recovery is a quotient of sums, `Σ_t gain_t / s_t ÷ Σ_t loss_t / s_t`, over all tasks that count in the mean, with
or without a loss of their own. Which tasks those are is chosen before anything is measured: a mean over the tasks whose
loss turns out significant would be too high, since a loss is found significant most often where chance made it large,
and the same chance is in the gain. s_t, the standard error of the task's loss, gives accuracies and nats one unit, and
a task the more say the better its loss was measured.

Mean retention is the mean of the tasks' retentions. A vision task has none on which the baseline is not beyond noise
better than the commonest right answer, given to every item: there is no vision to keep. Nor has one whose baseline is
known to less than half of itself: next to 0 the noise of its quotient would be that of the mean. (Of two tasks of 500
items that fell by 5% the mean sees the fall in 85 of 100 evaluations; with a third of 100 items and a baseline of 5% in
13.) Both look at the baseline alone, so no model is favored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lingu_ray.evaluation.bootstrap import interval
from lingu_ray.evaluation.levels import Measured, Resampled
from lingu_ray.evaluation.results import UNITS, Estimate, Interval, quoted
from lingu_ray.evaluation.roles import References

ALONE = "of one item there is no interval: give the task more, a long text in parts"


@dataclass(frozen=True)
class NoValue:
    """Why a recovery or retention has no value."""

    reason: str


Quotient = Resampled | NoValue


def recovery(task: Measured, model: str, references: References) -> Quotient:
    """Share of the task's loss that `model` has again; no value where there was no loss beyond noise."""
    sides = _gain_and_loss(task, model, references)
    if isinstance(sides, NoValue):
        return sides
    gain, loss = sides
    low, high = interval(loss.value_R)
    if low <= 0:
        unit = UNITS.get(task.metric.name, task.metric.name)
        names = f"{references.original} − {references.baseline}"
        found = f"{names} = {task.sign * loss.value:+.3f} {unit}, lost {loss.value:+.3f} [{low:+.3f}, {high:+.3f}]"
        return NoValue(f"no loss to recover beyond noise: {found}")
    return _quotient(gain, loss)


def estimated(found: Resampled) -> Estimate:
    """The value with the interval of its resamples."""
    return Estimate(found.value, Interval(*interval(found.value_R)))


def retention(task: Measured, model: str, references: References) -> Quotient:
    """Share of the baseline's level that `model` has; no value where that is none, or what one answer scores."""
    if absent := [name for name in (references.baseline, model) if name not in task.levels]:
        return NoValue(f"not measured: {', '.join(absent)}")
    if task.alone:
        return NoValue(ALONE)
    baseline = task.levels[references.baseline]
    if (score := estimated(baseline)).is_faint:
        found = f"{task.metric.name} {score.value:.3f} [{score.ci.low:.3f}, {score.ci.high:.3f}]"
        return NoValue(f"the {references.baseline} model has too little to keep, next to its noise: {found}")
    if task.constant is not None and interval(task.above_constant(references.baseline).value_R)[0] <= 0:
        (answer,) = task.constant.levels
        same = f"not better beyond noise than always {quoted(answer)}"
        return NoValue(f"the {references.baseline} model has nothing to keep: it is {same}")
    return _quotient(task.levels[model], baseline)


def mean_recovery(tasks: Sequence[Measured], model: str, references: References, beside: str | None = None) -> Quotient:
    """Summed gain over summed loss of the language tasks that count; with `beside` the difference to that model's.

    No value where all of them together lost nothing beyond noise.
    """
    counted = list(_counted(tasks, "language"))
    if (absent := _not_measured(counted, (*references, model, beside))) is not None:
        return absent
    reasons: list[str] = []
    gains: list[Resampled] = []
    losses: list[Resampled] = []
    for task in counted:
        sides = _gain_and_loss(task, model, references)
        other = sides if beside is None else _gain_and_loss(task, beside, references)
        if isinstance(sides, NoValue) or isinstance(other, NoValue):
            reasons += [f"{task.config.name}: {side.reason}" for side in (sides, other) if isinstance(side, NoValue)]
            continue
        gain, loss = sides
        unit = 1 / _standard_error(task, loss)
        gains.append((gain if beside is None else gain.minus(other[0])).times(unit))
        losses.append(loss.times(unit))
    if not losses:
        return NoValue("; ".join(dict.fromkeys(reasons)) or "no language task counts in the mean")
    gain, loss = _sum(gains), _sum(losses)
    if interval(loss.value_R)[0] <= 0:
        tasks_together = f"{len(losses)} tasks together" if len(losses) > 1 else "one task"
        return NoValue(f"no loss to recover beyond noise, on {tasks_together}")
    return _quotient(gain, loss)


def mean_retention(
    tasks: Sequence[Measured], model: str, references: References, beside: str | None = None
) -> Quotient:
    """Mean of the vision tasks' retentions, over those that have one; with `beside` the difference to that model's."""
    counted = list(_counted(tasks, "vision"))
    if (absent := _not_measured(counted, (references.baseline, model, beside))) is not None:
        return absent
    found = {task.config.name: _retention(task, model, references, beside) for task in counted}
    known = [quotient for quotient in found.values() if isinstance(quotient, Resampled)]
    if not known:
        reasons = [f"{name}: {quotient.reason}" for name, quotient in found.items() if isinstance(quotient, NoValue)]
        return NoValue("; ".join(reasons) or "no vision task counts in the mean")
    return _sum(known).times(1 / len(known))


def _not_measured(tasks: Sequence[Measured], models: Iterable[str | None]) -> NoValue | None:
    """Why a mean would leave out tasks, which one of the models was not measured on; None where it would not.

    Means over some of the tasks and over all of them would stand side by side as if they were of the same.
    """
    absent = {task.config.name: [one for one in models if one is not None and one not in task.levels] for task in tasks}
    reasons = [f"{name}: not measured: {', '.join(found)}" for name, found in absent.items() if found]
    return NoValue("; ".join(reasons)) if reasons else None


def _retention(task: Measured, model: str, references: References, beside: str | None) -> Quotient:
    own = retention(task, model, references)
    other = own if beside is None else retention(task, beside, references)
    if isinstance(own, NoValue) or isinstance(other, NoValue):
        return own if isinstance(own, NoValue) else other
    return own if beside is None else own.minus(other)


def _counted(tasks: Sequence[Measured], kind: str) -> Iterator[Measured]:
    return (task for task in tasks if task.config.kind == kind and task.config.in_mean)


def counts(task: Measured, model: str, references: References) -> bool:
    """Whether the model's mean takes the task: its settings let it, and so do the levels."""
    sides = retention if task.config.kind == "vision" else _gain_and_loss
    found = sides(task, model, references)
    return task.config.in_mean and not isinstance(found, NoValue)


def _gain_and_loss(task: Measured, model: str, references: References) -> tuple[Resampled, Resampled] | NoValue:
    """What `model` has more than the baseline, and what the baseline has less than the original."""
    models = (references.original, references.baseline, model)
    if absent := [name for name in models if name not in task.levels]:
        return NoValue(f"not measured: {', '.join(absent)}")
    if reason := task.incomparable(*models):
        return NoValue(reason)
    if task.alone:
        return NoValue(ALONE)
    return task.gain(model, references.baseline), task.gain(references.original, references.baseline)


def _standard_error(task: Measured, loss: Resampled) -> float:
    """Of the loss, over the resamples; at least what one item in all makes of it, where too few differ to vary."""
    return max(float(np.std(loss.value_R)), 1 / task.items)


def _sum(values: list[Resampled]) -> Resampled:
    return Resampled(sum(one.value for one in values), np.sum([one.value_R for one in values], axis=0))


def _quotient(above: Resampled, below: Resampled) -> Resampled:
    # The 2.5% of resamples with the smallest denominator are taken at its interval's low end, which is above 0: next
    # to 0 the quotient flies off, and past it changes its sign.
    least = interval(below.value_R)[0]
    return Resampled(above.value / below.value, above.value_R / np.maximum(below.value_R, least))
