"""Texts, told apart by their words: which records quote the same document, and which quote a held-out text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence

from benchmarks.result.groups import Groups
from lingu_ray.evaluation.contamination.items import SHARE
from lingu_ray.evaluation.contamination.words import WORDS, word_runs

TEMPLATE = 10
"""Records of one task from which words in a row belong to the task's template."""


def quotes(text: str, template: Collection[int] = ()) -> set[int]:
    """The hashes of a text's words in a row (`word_runs`).

    Left out is what overlaps with words of a template: half of one, and a common word behind it, are no quotation.
    """
    hashes: list[int] = word_runs(text).tolist()
    of_template = {near for begin, one in enumerate(hashes) if one in template for near in _overlapping(begin)}
    return {one for begin, one in enumerate(hashes) if begin not in of_template}


def _overlapping(begin: int) -> range:
    return range(begin - WORDS + 1, begin + WORDS)


def templates(texts: Sequence[str], tasks: Sequence[str]) -> set[int]:
    """The words in a row that texts of a task share because they are its template's."""
    by_task: dict[str, Counter[int]] = defaultdict(Counter)
    for text, task in zip(texts, tasks, strict=True):
        by_task[task].update(quotes(text))
    return {quote for counts in by_task.values() for quote, times in counts.items() if times >= TEMPLATE}


def group_documents(texts: Sequence[str], template: set[int]) -> Groups:
    """Group the texts that share words in a row, templates aside."""
    groups, first = Groups(len(texts)), dict[int, int]()
    for place, text in enumerate(texts):
        for quote in quotes(text, template):
            groups.join(first.setdefault(quote, place), place)
    return groups


def quoted_in(texts: Iterable[str], template: set[int]) -> set[int]:
    """All words in a row of the texts, templates aside."""
    return set().union(*(quotes(text, template) for text in texts))


def shown(text: str, known: Collection[int]) -> bool:
    """Whether training that has the words in a row `known` shows a text: a fifth or more of it, templates and all.

    Words that many records of a task share are taken for its template's, and may be those of a document that they all
    ask about.
    """
    runs: list[int] = word_runs(text).tolist()
    return sum(run in known for run in runs) >= SHARE * max(1, len(runs))
