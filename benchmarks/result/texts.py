"""Texts, told apart by their words: which records quote the same document, and which quote a held-out text."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence

from benchmarks.result.groups import Groups

WORDS = 13
"""Words in a row by which two texts are taken for the same; as in the decontamination of GPT-3's training data."""
TEMPLATE = 10
"""Records of one task from which words in a row belong to the task's template."""


def quotes(text: str, template: Collection[int] = ()) -> set[int]:
    """A hash of every `WORDS` words in a row; of a shorter text one of all its words. None of a text without words.

    Left out is what overlaps with words of a template: half of one, and a common word behind it, are no quotation.
    """
    words = re.findall(r"\w+", text.lower())
    last = max(1, len(words) - WORDS + 1) if words else 0
    hashes = [_hash(words[begin : begin + WORDS]) for begin in range(last)]
    of_template = {near for begin in range(last) if hashes[begin] in template for near in _overlapping(begin)}
    return {one for begin, one in enumerate(hashes) if begin not in of_template}


def _overlapping(begin: int) -> range:
    return range(begin - WORDS + 1, begin + WORDS)


def _hash(words: Sequence[str]) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest(), "little")


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
