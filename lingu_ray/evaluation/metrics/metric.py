"""What a metric is: every one is `Σ score / Σ weight` over items, so that one bootstrap serves them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Columns = dict[str, list[Any]]
"""Items in columns, an entry an item. Of every item: `item` (its name). Of scored ones: `logliks`, `tokens` and
`greedy`, each a list with an entry a text. Of answered ones: `prediction`. Beside them the references of its type.
"""


@dataclass(frozen=True)
class Scores:
    """An entry an item; `extra` are further levels to show, by name, that recovery is not made from."""

    score: list[float]
    weight: list[float]
    extra: dict[str, list[float]]


@dataclass(frozen=True)
class Metric:
    """How a task type is judged. `level = Σ score / Σ weight`; log-perplexity is such a level, in nats a token.

    `share`: the level is a share of what could be reached (shown in per cent); else a number of its own scale.
    """

    name: str
    higher_is_better: bool
    share: bool
    judge: Callable[[Columns], Scores]
