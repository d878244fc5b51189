"""The answer that is right most often, given to every item: what a score is worth that needs no look at the picture."""

from __future__ import annotations

from collections import Counter
from string import ascii_uppercase

from lingu_ray.evaluation.metrics.metric import Columns
from lingu_ray.evaluation.metrics.short_answers import normalize

CAPTIONS = frozenset(("cider", "rouge_l"))
"""Types of which no answer is right for several items."""


def commonest_answer(columns: Columns) -> str:
    """Of the items' right answers the commonest, the first of several; of lettered options the letter."""
    if "answers" not in columns:
        ((gold, _),) = Counter(columns["gold"]).most_common(1)
        return ascii_uppercase[gold] if "choices" in columns else gold
    accepted = [answer for answers in columns["answers"] for answer in answers]
    keys = [normalize(answer) for answer in accepted]
    ((commonest, _),) = Counter(keys).most_common(1)
    return accepted[keys.index(commonest)]


def answered_alike(columns: Columns, answer: str) -> Columns:
    """The items, each given this answer."""
    return columns | {"prediction": [answer] * len(columns["item"])}
