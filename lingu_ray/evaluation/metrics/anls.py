"""Average normalized Levenshtein similarity, of DocVQA and InfoVQA: near misses of reading count in part."""

from __future__ import annotations

from rapidfuzz.distance import Levenshtein

LEAST = 0.5
"""Similarity below which an answer is wrong altogether; the half itself counts, as in the official evaluation."""


def anls(prediction: str, answers: list[str]) -> float:
    """Similarity to the nearest answer, 1 − edits / length of the longer, without regard to case and spacing."""
    return max(Levenshtein.normalized_similarity(_plain(prediction), _plain(a), score_cutoff=LEAST) for a in answers)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
