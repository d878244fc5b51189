"""The reasoning that some models write before an answer, `<think>…</think>`: it is no part of what is judged."""

from __future__ import annotations

from lingu_ray.evaluation.metrics.metric import Columns

OPENING, CLOSING = "<think>", "</think>"


def reasoning_length(text: str) -> int:
    """Length of the reasoning that a text begins with, and of the space behind it; of all, where it does not end."""
    _, closed, answer = text.rpartition(CLOSING)
    if closed:
        return len(text) - len(answer.lstrip())
    return len(text) if text.lstrip().startswith(OPENING) else 0


def without_reasoning(columns: Columns) -> Columns:
    """The items with their answers alone; one that ends within its reasoning is empty."""
    if "prediction" not in columns:
        return columns
    return columns | {"prediction": [text[reasoning_length(text) :] for text in columns["prediction"]]}
