"""Runs of words in texts: which records quote the same document, and which quote a held-out text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence

from benchmarks.result.groups import Groups
from lingu_ray.evaluation.contamination.items import SHARE
from lingu_ray.evaluation.contamination.words import WORDS, word_runs

TEMPLATE = 10
"""A run of words in so many records of a task belongs to the task's template."""


def quotes(text: str, template: Collection[int] = ()) -> set[int]:
    """The hashes of a text's runs of words (`word_runs`), without those that overlap with a template's.

    Half of a template's run with a common word behind it would be no quotation.
    """
    hashes: list[int] = word_runs(text).tolist()
    of_template = {near for begin, one in enumerate(hashes) if one in template for near in _overlapping(begin)}
    return {one for begin, one in enumerate(hashes) if begin not in of_template}


def _overlapping(begin: int) -> range:
    return range(begin - WORDS + 1, begin + WORDS)


def templates(texts: Sequence[str], tasks: Sequence[str]) -> set[int]:
    """The runs of words that texts of a task share because of its template."""
    by_task: dict[str, Counter[int]] = defaultdict(Counter)
    for text, task in zip(texts, tasks, strict=True):
        by_task[task].update(quotes(text))
    return {quote for counts in by_task.values() for quote, times in counts.items() if times >= TEMPLATE}


def group_documents(texts: Sequence[str], template: set[int]) -> Groups:
    """Group the texts that share runs of words, apart from templates."""
    groups, first = Groups(len(texts)), dict[int, int]()
    for place, text in enumerate(texts):
        for quote in quotes(text, template):
            groups.join(first.setdefault(quote, place), place)
    return groups


def quoted_in(texts: Iterable[str], template: set[int]) -> set[int]:
    """All runs of words in the texts, apart from templates."""
    return set().union(*(quotes(text, template) for text in texts))


def shown(text: str, known: Collection[int]) -> bool:
    """Whether training data with the runs of words `known` contain a fifth or more of a text, templates included.

    Runs that many records of a task share count as its template, but may be of a document that all ask about.
    """
    runs: list[int] = word_runs(text).tolist()
    return sum(run in known for run in runs) >= SHARE * max(1, len(runs))
