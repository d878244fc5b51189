"""Results of a comparison over its seeds, model by model: mean and spread, or the interval of a single seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import ttest_1samp

from benchmarks.result.jobs import measured_folder
from benchmarks.result.table import CORES, DAMAGES, DATA, MEDIUM, NARROW, ROWS, Comparison, Size, comparisons
from lingu_ray.evaluation.recovery_json import read_recovery, read_result
from lingu_ray.evaluation.results import PERPLEXITY, Estimate, QuotientName, Recovery, TaskScores
from lingu_ray.evaluation.roles import ADAPTED, DISTILLED, PLAIN_CE, SAME_CE, TEACHER

REFERENCES = (TEACHER, ADAPTED)
CONTROLS = (SAME_CE, PLAIN_CE)
TRAININGS = 3  # least number for an interval over trainings


@dataclass(frozen=True)
class Measured:
    """A comparison with one seed, its result, and the folder of its items; None: it was measured on another machine."""

    comparison: Comparison
    result: Recovery
    folder: Path | None


def read_measured(published: Path | None = None, size: Size = CORES) -> list[Measured]:
    """All comparisons that were measured here, or whose result lies in `published`, in the order of the table.

    A result from here is preferred, unless it has no result of the method's model yet.
    """
    found = []
    for one in comparisons(size):
        folder = measured_folder(one)
        here, elsewhere = read_recovery(folder), published and read_result(published / f"{one.name}.json")
        if here is not None and (elsewhere is None or DISTILLED in here.measured):
            found.append(Measured(one, here, folder))
        elif elsewhere is not None:
            found.append(Measured(one, elsewhere, None))
    return found


@dataclass(frozen=True)
class Seeds:
    """A value with its interval, for each seed."""

    found: tuple[Estimate, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(one.value for one in self.found)

    @property
    def is_one(self) -> bool:
        """Whether there is one seed, or all seeds have the same value, as for the teacher."""
        return len(set(self.found)) == 1

    @property
    def around(self) -> tuple[float, float]:
        """The range to show: mean ± standard deviation over seeds, or the single value's interval over items."""
        if self.is_one:
            return self.found[0].ci
        deviation = statistics.stdev(one.value for one in self.found)
        return self.mean - deviation, self.mean + deviation

    def text(self, format: Callable[[float], str]) -> str:
        """`93.1 ± 0.8` over seeds; `93.1 [91.0, 95.2]` of one; a dash for none."""
        if not self.found:
            return "–"
        low, high = self.around
        if self.is_one:
            return f"{format(self.mean)} [{format(low)}, {format(high)}]"
        return f"{format(self.mean)} ± {format(high - self.mean)}"


def over_trainings(values: Sequence[float], format: Callable[[float], str]) -> str:
    """`0.7 [-1.2, 2.6]`: mean over trainings with its 95 % interval by Student's t; empty for less than `TRAININGS`."""
    if len(values) < TRAININGS:
        return ""
    interval = ttest_1samp(values, 0.0).confidence_interval(0.95)
    return f"{format(statistics.fmean(values))} [{format(interval.low)}, {format(interval.high)}]"


def percent(share: float) -> str:
    """A share in per cent, without the sign."""
    return f"{100 * share:.1f}"


def tenths(value: float) -> str:
    """A perplexity."""
    return f"{value:.1f}"


def nats(value: float) -> str:
    """Nats, or a difference of them."""
    return f"{value:.3f}"


def written(task: TaskScores) -> tuple[str, Callable[[float], str]]:
    """The metric of a task's scores with its unit, and the format of the numbers."""
    metric = task.metric.replace("_", " ")
    if task.is_share:
        return f"{metric}, %", percent
    return metric, tenths if task.metric == PERPLEXITY else nats


def written_difference(task: TaskScores) -> tuple[str, Callable[[float], str]]:
    """The unit of differences of scores, and the format of the numbers."""
    return ("points", percent) if task.is_share else ("nats", nats)


@dataclass(frozen=True)
class Results:
    """The results of all seeds for one damage and one kind of data."""

    measured: tuple[Measured, ...]

    @classmethod
    def of(cls, measured: Sequence[Measured], damage: str = MEDIUM, data: str = NARROW) -> Results:
        """The results of a damage and a kind of data; by default those of the main rows."""
        chosen = (m for m in measured if (m.comparison.damage, m.comparison.data) == (damage, data))
        return cls(tuple(chosen))

    @property
    def name(self) -> str:
        """Damage and data."""
        one = self.measured[0].comparison
        return f"{one.damage}, {DATA[one.data]}"

    @property
    def models(self) -> list[str]:
        """The models that were measured, in the order of the table."""
        there = {model for one in self.measured for model in one.result.measured}
        order = (*REFERENCES, *CONTROLS, DISTILLED, *(row.model for row in ROWS if row.model))
        return [name for name in dict.fromkeys(order) if name in there]

    @property
    def control(self) -> str | None:
        """The model without a teacher that KD is compared with; None where none was measured."""
        return next((name for name in CONTROLS if name in self.models), None)

    def tasks(self, kind: str | None = None) -> Iterator[tuple[str, TaskScores]]:
        """Names and scores of the first seed's tasks, by their metrics and also in nats where they have them."""
        return ((name, task) for name, task in self.measured[0].result.rows if kind in (None, task.kind))

    def _task(self, one: Measured, name: str, metric: str) -> TaskScores | None:
        task = one.result.tasks.get(name)
        if task is None or task.metric == metric:
            return task
        return task.nats

    def score(self, name: str, metric: str, model: str) -> Seeds:
        """A model's score on a task, by one of its metrics."""
        return self._each(name, metric, lambda task: task.models[model].score if model in task.models else None)

    def quotient(self, name: str, metric: str, model: str) -> Seeds:
        """A model's recovery or retention on a task."""
        return self._each(name, metric, lambda task: task.models[model].quotient if model in task.models else None)

    def over(self, name: str, metric: str, other: str) -> Seeds:
        """The distilled model's lead over another model on a task."""
        return self._each(name, metric, lambda task: task.over.get(other))

    def blind(self, name: str, model: str) -> Seeds:
        """A model's score on a vision task without its pictures."""
        found = (one.result.tasks[name].blind for one in self.measured)
        return _seeds(blind.scores.get(model) for blind in found if blind is not None)

    def mean(self, quotient: QuotientName, model: str) -> Seeds:
        """A model's mean recovery or retention."""
        means = (one.result.models.get(model) for one in self.measured)
        return _seeds(found.of(quotient) for found in means if found is not None)

    def lost_nats(self, name: str) -> float:
        """Nats a token that the adapted model has lost on a text against the teacher, as mean over seeds."""
        scores = (one.result.tasks[name].models for one in self.measured)
        return statistics.fmean(math.log(m[ADAPTED].score.value / m[TEACHER].score.value) for m in scores)

    def ahead(self, quotient: QuotientName, other: str) -> Seeds:
        """The distilled model's mean recovery or retention minus that of another model."""
        means = (one.result.over.get(other) for one in self.measured)
        return _seeds(found.of(quotient) for found in means if found is not None)

    def _each(self, name: str, metric: str, read: Callable[[TaskScores], Estimate | None]) -> Seeds:
        tasks = (self._task(one, name, metric) for one in self.measured)
        return _seeds(read(task) for task in tasks if task is not None)


def map_cells(measured: Sequence[Measured]) -> list[Results]:
    """The measured cells of the map: damage by kind of data."""
    results = (Results.of(measured, damage, data) for damage in DAMAGES for data in DATA)
    return [one for one in results if one.measured]


def _seeds(found: Iterator[Estimate | None]) -> Seeds:
    return Seeds(tuple(one for one in found if one is not None))
