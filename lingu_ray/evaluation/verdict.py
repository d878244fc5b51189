"""Whether the claim holds: language came back, vision stayed, and the teacher was needed for it.

Each part is answered by an interval, never by a value alone: yes, no, or not decided.

- *Recovery*, the mean over the language tasks: yes where the whole interval reaches `evaluation.min_recovery`, no where
  it is below.
- *Retention*, the mean over the vision tasks: yes where the whole interval reaches `evaluation.min_retention`; no where
  it is below, or below 1, which is a measurable drop.
- *Controls*: the difference of the mean recovery to each control that was measured: yes where the whole interval is
  above 0, no where it is below. Without a control this part is not decided.

The claim holds where all parts do, and does not where one does not. Where it is not decided, the sentence says what
would decide it.

A mean can hide a loss, so the verdict also names every task that speaks against the claim beyond noise:

- its own recovery is below the floor, or its retention below the floor or 1;
- it has no recovery, for it lost nothing beyond noise, or no retention, for the baseline has too little to keep, and
  the distilled model scores below the baseline;
- a control scores better on it.

Tasks of a mean without a value of their own that show no such loss are named as not judged alone, with their recovery
in nats where there is one. With `evaluation.recovery_in: nats` all of this is about the tasks' nats, where they are
measured. Language tasks of the mean on which the baseline is better than the original are named: such a gain makes the
sum of losses smaller. With `evaluation.blind` the vision tasks are named that the baseline answers as well without
images. Vision tasks are named on which it is no better than the commonest right answer would be, or scores next to its
own noise: they have no retention, and are in no mean. Named are tasks of so few items that the bootstrap says little of
others. None of this changes a part of the claim.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lingu_ray.evaluation.results import Estimate, Means, QuotientName, TaskScores, Verdict
from lingu_ray.evaluation.roles import DISTILLED, FINE_TUNED, PLAIN_CE, SAME_CE, References

CONTROL_NAMES = {
    SAME_CE: "the same cross-entropy without the teacher",
    PLAIN_CE: "plain cross-entropy",
    FINE_TUNED: "plain fine-tuning",
}
_MANY = 50
"""Times the items, from which on more items are no help: the value lies on the floor."""
_FEW = 30
"""Items, below which a task is named: where so many are all alike, one in ten others may not be (0.9³⁰ = 0.04)."""
_SEEDS = "runs with more seeds"


@dataclass(frozen=True)
class Part:
    """One part of the claim: its answer (None: not decided), the answer in words, and what would decide it."""

    name: str
    holds: bool | None
    text: str
    needs: str | None = None


def judge(
    tasks: Mapping[str, TaskScores],
    distilled: Means,
    over: Mapping[str, Means],
    floors: Mapping[QuotientName, float],
    reasons: Mapping[QuotientName, str],
    models: Sequence[str],
    references: References,
) -> Verdict:
    """The verdict on the measured tasks.

    Args:
        tasks: by name; of each what counts (`TaskScores.counted`).
        distilled: the distilled model's means.
        over: its means minus another model's, by that model's name; of them the controls are read.
        floors: what recovery and retention must reach.
        reasons: why a mean that is None has no value.
        models: all that were measured; without the three that the claim is about there is nothing to judge.
        references: two of those three.
    """
    if absent := [name for name in (*references, DISTILLED) if name not in models]:
        count = f"{len(tasks)} task{'s' if len(tasks) > 1 else ''}"
        needed = f"Recovery and retention need models of the names {', '.join(absent)} too."
        return Verdict(None, f"Scores of {', '.join(models)} on {count}. {needed}")
    parts = [
        _recovery(distilled.recovery, floors["recovery"], reasons),
        _retention(distilled.retention, floors["retention"], reasons),
        *_controls(over, distilled.recovery),
    ]
    exceptions = tuple(clause for name, task in tasks.items() for clause in _exceptions(name, task, references))
    answers = [part.holds for part in parts]
    holds = False if False in answers else None if None in answers else True
    order = sorted(parts, key=lambda part: part.holds is not holds)  # what the headline says first
    clauses = [
        *(part.text for part in order),
        *exceptions,
        *_not_judged(tasks, references),
        *_gained(tasks, references),
        *_unseen(tasks, references),
        *_nothing_to_keep(tasks, references),
        *_few_items(tasks),
    ]
    text = f"{_headline(holds, exceptions)}: {'; '.join(clauses)}."
    if holds is None:
        text += _needed(parts)
    return Verdict(holds, text, exceptions, {part.name: part.holds for part in parts})


def _headline(holds: bool | None, exceptions: tuple[str, ...]) -> str:
    if holds is None:
        return "The claim is not decided"
    if not holds:
        return "The claim does not hold"
    return "The claim holds, but not on every task" if exceptions else "The claim holds"


def _recovery(mean: Estimate | None, floor: float, reasons: Mapping[QuotientName, str]) -> Part:
    if mean is None:
        return Part("recovery", None, f"recovery has no value ({reasons['recovery']})")
    found = f"{mean.percent()} of the lost language came back"
    return _reaches(mean, "recovery", "language", found, floor, floor)


def _retention(mean: Estimate | None, floor: float, reasons: Mapping[QuotientName, str]) -> Part:
    if mean is None:
        return Part("retention", None, f"retention has no value ({reasons['retention']})")
    found = f"{mean.percent(1)} of vision was kept"
    return _reaches(mean, "retention", "vision", found, floor, max(floor, 1))


def _reaches(mean: Estimate, name: str, kind: str, found: str, floor: float, no_below: float) -> Part:
    """Whether a mean, `found` in words, reaches its floor: no where all of its interval is below `no_below`."""
    if mean.ci.low >= floor:
        return Part(name, True, found)
    if mean.ci.high < floor:
        return Part(name, False, f"only {found}, and {_percent(floor)} is needed")
    if mean.ci.high < no_below:
        return Part(name, False, f"only {found}, a measurable drop")
    open_text = f"{found}, which leaves open whether it is the {_percent(floor)} that is needed"
    return Part(name, None, open_text, _more_items(kind, mean, floor, no_below))


def _controls(over: Mapping[str, Means], recovery: Estimate | None) -> Iterator[Part]:
    if not CONTROL_NAMES.keys() & over.keys():
        needs = "a control, trained without the teacher (controls: [same_ce, plain_ce])"
        yield Part("controls", None, "no control tells whether the teacher was needed for it", needs)
    for name, beside in CONTROL_NAMES.items():
        if name not in over:
            continue
        difference = over[name].recovery
        if difference is None:
            if recovery is not None:
                yield Part(name, None, f"{beside} was not measured on the same language tasks")
            continue
        points = difference.points()
        if difference.is_positive:
            yield Part(name, True, f"{points} points more came back than by {beside}")
        elif difference.is_positive is False:
            less = (-difference).points()
            yield Part(name, False, f"the teacher was not needed: {less} points more came back by {beside}")
        else:
            needs = _more_items("language", difference, 0, 0)
            text = f"{points} points more came back than by {beside}, which leaves open whether the teacher was needed"
            yield Part(name, None, text, needs)


def _more_items(kind: str, found: Estimate, yes_from: float, no_below: float) -> str:
    """What decides a part, if the value stays where it is: so many times the items, unless it lies on the floor."""
    below, above = found.value - found.ci.low, found.ci.high - found.value
    sides = ((below, found.value - yes_from), (above, no_below - found.value))
    ratios = [width / distance for width, distance in sides if distance > 0]
    times = min((ratio**2 for ratio in ratios), default=math.inf)
    return f"{max(math.ceil(round(times, 6)), 2)} times the {kind} items" if times < _MANY else _SEEDS


def _needed(parts: Sequence[Part]) -> str:
    """What would decide the claim, as a sentence of its own."""
    needs = list(dict.fromkeys(part.needs for part in parts if part.holds is None and part.needs))
    if not needs:
        return ""
    or_seeds = f", or {_SEEDS}" if any(" items" in need for need in needs) and _SEEDS not in needs else ""
    return f" What would decide it: {' and '.join(needs)}{or_seeds}."


def _exceptions(name: str, task: TaskScores, references: References) -> Iterator[str]:
    """What on this task speaks against the claim, beyond noise."""
    quotient, floor, over = task.distilled, -math.inf if task.floor is None else task.floor, task.over
    of_baseline = over.get(references.baseline)
    if quotient is not None and task.kind == "language" and quotient.ci.high < floor:
        yield f"{name}: recovery {quotient.percent()} is below {_percent(floor)}"
    if quotient is not None and task.kind == "vision" and quotient.ci.high < max(floor, 1):
        size = f" of {_loss(of_baseline, task)}" if _is_loss(of_baseline) else ""
        yield f"{name}: a measurable drop{size}, retention {quotient.percent(1)}"
    if quotient is None and _is_loss(of_baseline):
        yield f"{name}: {DISTILLED} is worse than {references.baseline} by {_loss(of_baseline, task)}"
    for control, words in CONTROL_NAMES.items():
        if control != references.baseline and _is_loss(over.get(control)):
            yield f"{name}: {words} is better by {_loss(over.get(control), task)}"


def _is_loss(gain: Estimate | None) -> bool:
    """Whether a gain is negative beyond noise."""
    return gain is not None and gain.ci.high < 0


def _loss(gain: Estimate | None, task: TaskScores) -> str:
    """A loss without its sign, in the metric's units: `2.5 [0.4, 4.6] points`."""
    assert gain is not None  # it was seen to be a loss
    return task.amount(-gain)


def _percent(share: float) -> str:
    return f"{100 * share:.4g}%"


def _gained(tasks: Mapping[str, TaskScores], references: References) -> Iterator[str]:
    """The tasks of mean recovery on which the baseline is better than the original beyond noise, item by item."""
    for name, task in tasks.items():
        if task.kind == "language" and task.in_mean and _is_loss(task.lost):
            yield (
                f"{name} counts in the mean recovery, and makes its sum of losses smaller: {references.baseline} is "
                f"better there than {references.original} by {_loss(task.lost, task)} "
                f"(leave it out: tasks.{name}.in_mean=false)"
            )


def _unseen(tasks: Mapping[str, TaskScores], references: References) -> Iterator[str]:
    """The tasks on which images add nothing to the baseline, whose retention then says nothing of vision."""
    for name, task in tasks.items():
        if task.blind is not None and task.blind.adds_nothing(references.baseline):
            gain = task.amount(task.blind.seeing[references.baseline])
            yield f"{name}: images add nothing beyond noise to {references.baseline}, {gain}"


def _nothing_to_keep(tasks: Mapping[str, TaskScores], references: References) -> Iterator[str]:
    """The tasks without a retention: one answer for all items does as well as the baseline, or its score is faint."""
    baseline = references.baseline
    for name, task in tasks.items():
        if task.constant is not None and task.constant.is_as_good_as(baseline):
            above = task.amount(task.constant.above[baseline])
            yield f"{name}: {baseline} is not better beyond noise than always {task.constant.said}, {above}"
        elif task.kind == "vision" and baseline in task.models and task.models[baseline].score.is_faint:
            yield f"{name}: {baseline} has too little to keep, {task.amount(task.models[baseline].score)}"


def _few_items(tasks: Mapping[str, TaskScores]) -> list[str]:
    """A clause with the tasks of a mean whose intervals, of few items, are narrower than what is known."""
    few = [f"{name} {task.counted_items}" for name, task in tasks.items() if task.in_mean and task.clusters < _FEW]
    return [f"intervals are too narrow with so few items: {', '.join(few)}"] if few else []


def _not_judged(tasks: Mapping[str, TaskScores], references: References) -> list[str]:
    """A clause with the tasks of a mean that have no value of their own, where there are any; with recovery in nats."""
    names = [
        f"{name} (in nats {task.nats.distilled.percent()} came back)" if task.nats and task.nats.distilled else name
        for name, task in tasks.items()
        if task.in_mean and task.distilled is None and not list(_exceptions(name, task, references))
    ]
    return [f"not judged alone: {', '.join(names)}"] if names else []
