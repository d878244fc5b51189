"""What of an evaluation item would be found in training rows: its words with the right answer, or its pictures.

An item without pictures is found where a fifth or more of its words in a row are in rows: as "not clean" in Llama 2's
report (arXiv 2307.09288, A.6), with GPT-3's thirteen words (arXiv 2005.14165, C). Words of the task's template do not
count; those of a rarer one are less than that fifth of a text, as a rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lingu_ray.evaluation.contamination.words import Runs, word_runs
from lingu_ray.evaluation.tasks.task import Item, Task, images_of

SHARE = 0.2
"""Of an item's words in a row, from which on it is found."""
TEMPLATE = 10
"""Items that share words in a row, and one in how many at least, from which these are the task's template."""


@dataclass(frozen=True)
class Marks:
    """What to look for in the rows. `pictures`: identities by pixels. `runs`: hashes of words in a row, sorted."""

    pictures: frozenset[str]
    runs: Runs


@dataclass(frozen=True)
class Seen:
    """Where a mark stands first, by source and position."""

    source: str
    row: int


class TaskMarks:
    """The marks of a task's items: pictures where an item has some, else words in a row without the template's.

    `texts`: by item, for each right answer, its marks in order.
    """

    def __init__(self, task: Task):
        self.task = task
        self.pictures = [[image.pixels for image in images_of(item)] for item in task.items]
        texts = [[word_runs(text).tolist() for text in _texts(item)] for item in task.items]
        items = Counter(run for of_item in texts for run in {run for text in of_item for run in text})
        enough = max(TEMPLATE, len(task.items) / TEMPLATE)
        self.texts = [[[run for run in text if items[run] < enough] for text in of_item] for of_item in texts]

    @property
    def marks(self) -> Marks:
        """All of them."""
        runs = {run for of_item in self.texts for text in of_item for run in text}
        return Marks(frozenset().union(*self.pictures), np.array(sorted(runs), np.uint64))

    def found(self, places: Mapping[str | int, Seen]) -> Iterator[tuple[Item, Seen]]:
        """The items that were seen in rows, each with where."""
        for item, pictures, texts in zip(self.task.items, self.pictures, self.texts, strict=True):
            seen = [places[picture] for picture in pictures if picture in places]
            for text in texts:
                known = [places[run] for run in text if run in places]
                seen += known if len(known) >= SHARE * len(text) else []
            if seen:
                yield item, min(seen, key=lambda one: one.row)


def _texts(item: Item) -> Sequence[str]:
    """What of the item could be quoted in words; nothing of one with pictures."""
    return () if images_of(item) else item.quotable
