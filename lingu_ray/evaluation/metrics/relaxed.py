"""Relaxed accuracy, of ChartQA: a number may be off by 5 % of the right one; other answers match exactly."""

from __future__ import annotations

TOLERANCE = 0.05


def relaxed_accuracy(prediction: str, answers: list[str]) -> float:
    """1 if one of the answers is met, else 0."""
    return float(any(_met(prediction.strip(), answer.strip()) for answer in answers))


def _met(prediction: str, answer: str) -> bool:
    said, right = _number(prediction), _number(answer)
    if said is None or not right:  # of 0 there is no share to be off by
        return prediction.lower() == answer.lower()
    return abs(said - right) / abs(right) <= TOLERANCE


def _number(text: str) -> float | None:
    """The number that a text is; 5% is 0.05."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
