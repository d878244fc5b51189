"""What an evaluation measured, as types. An estimate that has no value is None."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Literal, NamedTuple

from lingu_ray.evaluation.roles import DISTILLED, References, in_order

PERPLEXITY = "perplexity"
"""The metric whose level is the logarithm of its score, in nats per token."""

UNITS = {PERPLEXITY: "nats per token", "nats_per_word": "nats per word", "nats_per_choice": "nats per right choice"}
"""What a difference of scores is counted in, by metric; others are counted in the metric itself."""

MANY_CUT_OFF = 0.05
"""The share of a task's answers from which it is told that they ended at `max_new_tokens`."""

Kind = Literal["language", "vision"]
RecoveryIn = Literal["metric", "nats"]
"""What mean recovery and verdict take of a language task: its metric, or nats where likelihoods are measured."""
QuotientName = Literal["recovery", "retention"]
QUOTIENTS: dict[Kind, QuotientName] = {"language": "recovery", "vision": "retention"}
"""Of a kind of task: the part of the lost language that came back, or the part of vision that was kept."""


class Interval(NamedTuple):
    """Central 95% of the bootstrap's resamples."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A value with its interval."""

    value: float
    ci: Interval

    def percent(self, digits: int = 0) -> str:
        """`97% [94, 101]`."""
        low, high = (f"{100 * x:z.{digits}f}" for x in self.ci)
        return f"{self.value:z.{digits}%} [{low}, {high}]"

    def points(self, digits: int = 0) -> str:
        """A difference of shares: `17 [10, 20]`."""
        value, low, high = (f"{100 * x:z.{digits}f}" for x in (self.value, *self.ci))
        return f"{value} [{low}, {high}]"

    def __neg__(self) -> Estimate:
        return Estimate(-self.value, Interval(-self.ci.high, -self.ci.low))

    @property
    def is_faint(self) -> bool:
        """Whether a score is known to less than half of itself."""
        return self.ci.low <= self.value / 2

    @property
    def is_positive(self) -> bool | None:
        """Whether the value is above 0: beyond noise, or not; None where noise leaves it open."""
        return True if self.ci.low > 0 else False if self.ci.high < 0 else None


def _number(value: float) -> str:
    """A number in three digits, or whole: `0.0123`, `38.9`, `1,523`."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:z.3g}"


def quoted(answer: str) -> str:
    """An answer in quotes, a long one cut."""
    return f"“{shorten(answer, 40, placeholder='…')}”"


@dataclass(frozen=True)
class ModelScore:
    """A model on a task: its score, further levels by name, and its own recovery or retention.

    `cut_off`: the share of its answers that ended at `max_new_tokens`; None where it gave none, and in earlier files.
    """

    score: Estimate
    extra: dict[str, float]
    quotient: Estimate | None
    cut_off: float | None = None


@dataclass(frozen=True)
class Blind:
    """A vision task asked without its images, by model: its score, and how much better the model is with them.

    `cut_off`: as of `ModelScore`, by those models of which it is known.
    """

    scores: dict[str, Estimate]
    seeing: dict[str, Estimate]
    cut_off: dict[str, float] = field(default_factory=dict)

    def adds_nothing(self, model: str) -> bool:
        """Whether the model was measured, and is not better with images beyond noise."""
        return model in self.seeing and self.seeing[model].ci.low <= 0


@dataclass(frozen=True)
class Constant:
    """The commonest right answer given to every item of a vision task: its score, and how much better each model is."""

    answer: str
    score: Estimate
    above: dict[str, Estimate]

    @property
    def said(self) -> str:
        """The answer in quotes, a long one cut."""
        return quoted(self.answer)

    def is_as_good_as(self, model: str) -> bool:
        """Whether the model was measured, and is not better beyond noise."""
        return model in self.above and self.above[model].ci.low <= 0


@dataclass(frozen=True)
class TaskScores:
    """The models on a task.

    `is_share`: scores are shares of what can be reached, shown in per cent. `clusters`: the items, those counted once
    that are drawn together, since they share an image or what the task says. `floor`: recovery or retention from which
    the task counts as kept; None in files that have none. `reason`: why the distilled model's has no value. `in_mean`:
    whether these scores count in the mean of the task's kind, the distilled model's where it was measured.
    `limit`: the task's setting: the items are the first ones of its set; None: all, and in earlier files.
    `lost`: how much better the original scores than the baseline, item by item, in the same units as `over`; None where
    one of them was not measured, and in earlier files.
    `over`: by model, every one but the original: how much better the distilled model scores than that one, in the units
    of the metric (perplexity: nats per token); those that are measured, on the same tokens.
    `asked`: fingerprint of the items that all of them were asked; `engine`: which one asked, and its precision. None
    where it is not known.
    `nats`: the same by likelihood, where that is measured beside the metric. `blind`: of a vision task, where it was
    asked without its images, too. `constant`: of a vision task whose items can share an answer; None in earlier files.
    """

    kind: Kind
    metric: str
    higher_is_better: bool
    is_share: bool
    items: int
    clusters: int
    models: dict[str, ModelScore]
    distilled: Estimate | None
    reason: str | None
    floor: float | None = None
    in_mean: bool = True
    lost: Estimate | None = None
    over: dict[str, Estimate] = field(default_factory=dict)
    asked: str | None = None
    engine: str | None = None
    nats: TaskScores | None = None
    blind: Blind | None = None
    constant: Constant | None = None
    limit: int | None = None

    @property
    def counted_items(self) -> str:
        """How many items there are, and in how many clusters, where some share one: `first 400 in 50 clusters`."""
        items = f"{self.items}" if self.limit is None else f"first {self.items}"
        return items if self.clusters == self.items else f"{items} in {self.clusters} clusters"

    @property
    def quotient_name(self) -> QuotientName:
        """`recovery` for a language task, `retention` for a vision task."""
        return QUOTIENTS[self.kind]

    def counted(self, recovery_in: RecoveryIn) -> TaskScores:
        """What mean recovery and verdict take of the task."""
        return self.nats if recovery_in == "nats" and self.nats is not None else self

    def amount(self, difference: Estimate) -> str:
        """A difference of scores: `2.5 [0.4, 4.6] points`."""
        if self.is_share:
            return f"{difference.points(1)} points"
        value, low, high = (_number(x) for x in (difference.value, *difference.ci))
        return f"{value} [{low}, {high}] {UNITS.get(self.metric, self.metric)}"

    @property
    def digits(self) -> int:
        """Decimals of a recovery or retention in per cent."""
        return 0 if self.kind == "language" else 1


@dataclass(frozen=True)
class Means:
    """A model's mean recovery and retention (`quotients.py`)."""

    recovery: Estimate | None
    retention: Estimate | None

    def of(self, quotient: QuotientName) -> Estimate | None:
        """One of both, by name."""
        return dict(self.items())[quotient]

    def items(self) -> Iterator[tuple[QuotientName, Estimate | None]]:
        """Both, by name."""
        yield "recovery", self.recovery
        yield "retention", self.retention


@dataclass(frozen=True)
class Verdict:
    """Whether the claim holds (None: not decided), and the sentence that says so wherever results are shown.

    `parts`: the same of each of its parts: recovery, retention, and each control by its name. `exceptions`: the tasks
    that speak against it, a clause each; the sentence has them too.
    """

    holds: bool | None
    text: str
    exceptions: tuple[str, ...] = ()
    parts: dict[str, bool | None] = field(default_factory=dict)

    @property
    def headline(self) -> str:
        """The sentence up to its colon."""
        return self.text.partition(": ")[0]

    @property
    def detail(self) -> str:
        """The sentence after its colon; empty where it has none."""
        return self.text.partition(": ")[2]

    @property
    def tone(self) -> str:
        """How a page colors it: `good`, `mixed` (holds, with exceptions), `bad`, or `open`."""
        if self.holds is None:
            return "open"
        return "bad" if not self.holds else "mixed" if self.exceptions else "good"


@dataclass(frozen=True)
class Recovery:
    """The content of `recovery.json`: the tasks by name, the means of the models, and the verdict.

    `distilled`: the means that the verdict is about. `models`: the means of all measured models but the references.
    `over`: by model, every other one but the original: the distilled model's means minus its own, over the same
    resampled items. `reasons`: why one of the distilled model's means has no value, where it has none. `recovery_in`:
    what the means and the verdict take of a language task.
    """

    tasks: dict[str, TaskScores]
    distilled: Means
    models: dict[str, Means]
    over: dict[str, Means]
    reasons: dict[QuotientName, str]
    references: References
    verdict: Verdict
    recovery_in: RecoveryIn = "metric"

    @property
    def rows(self) -> list[tuple[str, TaskScores]]:
        """The tasks by name, as tables show them: by the metric, and below that in nats where they are measured."""
        return [(name, one) for name, task in self.tasks.items() for one in (task, task.nats) if one is not None]

    @property
    def measured(self) -> list[str]:
        """Names of the models: the roles of the method in their order, then others."""
        return in_order(model for task in self.tasks.values() for model in task.models)

    def own_model(self, role: str) -> str:
        """The name that the model of the run has here whose result this is: `distilled`, or its role without one.

        All trials of a sweep are measured as `distilled`, beside a reference that may have the role. A control's model
        has its role, in the result of the run that it is beside.
        """
        return DISTILLED if DISTILLED in self.measured else role
