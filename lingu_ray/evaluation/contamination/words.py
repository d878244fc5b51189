"""Texts by their words in a row: what tells that one quotes another, whatever its case, punctuation and line breaks."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import lru_cache

import numpy as np
import numpy.typing as npt

WORDS = 13
"""Words in a row by which two texts are taken for the same; as in the decontamination of GPT-3's training data."""

WITHOUT_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese: each of their characters counts as a word."""
_WORD = re.compile(rf"[^\W_{WITHOUT_SPACES}]+|[{WITHOUT_SPACES}]")
_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]+")
"""Marks without width, as of web pages: hyphens that a line may break at, spaces of no width, directions of writing."""

Runs = npt.NDArray[np.uint64]


def word_runs(text: str) -> Runs:
    """A hash of every `WORDS` words in a row, in order; of a shorter text one of all its words.

    Returns:
        `(max(1, words - WORDS + 1),)`; empty for a text without words.
    """
    words = _WORD.findall(unicodedata.normalize("NFKC", _UNSEEN.sub("", text)).casefold())
    hashes = np.fromiter(map(_hash, words), np.uint64, len(words))
    length = min(WORDS, len(words))
    runs = np.zeros(len(words) - length + 1 if words else 0, np.uint64)
    for place in range(length):
        runs += hashes[place : place + len(runs)] * _FACTORS[place]
    return runs


@lru_cache(1 << 18)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


_FACTORS = np.array([_hash(f"place {place}") | 1 for place in range(WORDS)], np.uint64)
"""Odd, so that no bit of a word's hash is lost; different, so that the order of words counts."""
