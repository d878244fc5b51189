"""What a metric is: always `Σ score / Σ weight` over items, so that one bootstrap serves all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Columns = dict[str, list[Any]]
"""Items in columns, an entry per item. All items have `item` (the name); scored ones `logliks`, `tokens` and `greedy`,
each a list with an element per text; answered ones `prediction`. Beside them are the references of the task's type.
"""


@dataclass(frozen=True)
class Scores:
    """An entry per item; `extra`: further levels by name, which are shown but not used for recovery.

    `strata`: what each item belongs to, where the level is a sum over groups of fixed size (MME's categories): the
    bootstrap draws within each. None: the items are one sample. `most`: the level of items that are all right, of a
    metric that is no share; None where there is none that is reached.
    """

    score: list[float]
    weight: list[float]
    extra: dict[str, list[float]]
    strata: list[str] | None = None
    most: float | None = None


@dataclass(frozen=True)
class Metric:
    """How a task type is scored. `level = Σ score / Σ weight`; log-perplexity is such a level, in nats per token.

    `share`: the level is a share of what can be reached (shown in percent); else a number on a scale of its own.
    `nats`: of `Scores.extra`, the log-perplexity of the right answers, where there are likelihoods beside the metric.
    """

    name: str
    higher_is_better: bool
    share: bool
    judge: Callable[[Columns], Scores]
    nats: str | None = None
