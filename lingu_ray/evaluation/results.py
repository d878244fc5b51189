"""What an evaluation measured, as types. An estimate that has no value is None."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lingu_ray.evaluation.roles import CE_ONLY, DISTILLED, in_order

PERPLEXITY = "perplexity"
"""The metric whose level is the logarithm of its score, in nats per token."""

Kind = Literal["language", "vision"]
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
        low, high = (f"{100 * x:.{digits}f}" for x in self.ci)
        return f"{self.value:.{digits}%} [{low}, {high}]"


@dataclass(frozen=True)
class ModelScore:
    """A model on a task: its score, further levels by name, and its own recovery or retention."""

    score: Estimate
    extra: dict[str, float]
    quotient: Estimate | None


@dataclass(frozen=True)
class TaskScores:
    """The models on a task.

    `is_share`: scores are shares of what can be reached, shown in per cent. `floor`: recovery or retention from which
    the task counts as kept; None in files that have none. `reason`: why the distilled model's has no value.
    `over_adapted`, `over_ce_only`: how much better the distilled model scores than that one, in the units of the metric
    (perplexity: nats per token); None where one is not measured, or not on the same tokens.
    """

    kind: Kind
    metric: str
    higher_is_better: bool
    is_share: bool
    items: int
    models: dict[str, ModelScore]
    distilled: Estimate | None
    reason: str | None
    ce_only: Estimate | None
    floor: float | None = None
    over_adapted: Estimate | None = None
    over_ce_only: Estimate | None = None

    @property
    def quotient_name(self) -> QuotientName:
        """`recovery` for a language task, `retention` for a vision task."""
        return QUOTIENTS[self.kind]

    @property
    def unit(self) -> str:
        """What differences of the score are in."""
        return "nats per token" if self.metric == PERPLEXITY else self.metric

    @property
    def digits(self) -> int:
        """Decimals of a recovery or retention in per cent."""
        return 0 if self.kind == "language" else 1


@dataclass(frozen=True)
class Means:
    """A model's recovery and retention, each the mean over the tasks that give one."""

    recovery: Estimate | None
    retention: Estimate | None

    def items(self) -> Iterator[tuple[QuotientName, Estimate | None]]:
        """Both, by name."""
        yield "recovery", self.recovery
        yield "retention", self.retention


@dataclass(frozen=True)
class Control:
    """The CE-only model's means. `difference`: recovery of the distilled model minus its own, mean over tasks.

    `beaten`: whether the whole interval of the difference is above 0; None without a difference.
    """

    means: Means
    difference: Estimate | None
    beaten: bool | None


@dataclass(frozen=True)
class Verdict:
    """Whether the claim holds (None: cannot be judged), and the sentence that says so wherever results are shown.

    `exceptions`: the tasks that speak against it, a clause each; the sentence has them too.
    """

    holds: bool | None
    text: str
    exceptions: tuple[str, ...] = ()

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

    `distilled`: the means that the verdict is about. `models`: those of all measured models but teacher and adapted.
    """

    tasks: dict[str, TaskScores]
    distilled: Means
    control: Control | None
    models: dict[str, Means]
    verdict: Verdict

    @property
    def measured(self) -> list[str]:
        """Names of the models: the four of the method in their order, then others."""
        return in_order(model for task in self.tasks.values() for model in task.models)

    @property
    def trained_model(self) -> str:
        """The name that a run's own model has in its evaluation."""
        return DISTILLED if any(DISTILLED in task.models for task in self.tasks.values()) else CE_ONLY

    def reasons(self) -> dict[QuotientName, str]:
        """Why mean recovery or retention of the distilled model has no value, where it has none."""
        return {name: self._reason(name) for name, mean in self.distilled.items() if mean is None}

    def _reason(self, name: QuotientName) -> str:
        of_tasks = [(task_name, task.reason) for task_name, task in self.tasks.items() if task.quotient_name == name]
        return "; ".join(f"{task}: {reason}" for task, reason in of_tasks if reason) or "no task measures it"
