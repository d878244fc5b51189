"""The MME score: an image has two yes-or-no questions; both right count more than one.

An image scores 100 for the share of its questions that are right and 100 more when all are; a category is the mean over
its images, and the score is the sum over categories: at most 2000 for perception, 800 for cognition.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from lingu_ray.evaluation.metrics.metric import Columns, Scores

COGNITION = frozenset(("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"))


def judge_mme(columns: Columns) -> Scores:
    """An entry an image, in the order of its first question: the two questions of an image are drawn together.

    An image's score is scaled by images / images of its category, so that the mean over images is the sum over
    categories. `extra`: `perception` and `cognition`, the two parts of that sum.
    """
    right: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for prediction, gold, category, group in zip(
        columns["prediction"], columns["gold"], columns["category"], columns["group"], strict=True
    ):
        right[category, group].append(yes_or_no(prediction) == yes_or_no(gold))
    images = Counter(category for category, _ in right)
    score = [
        100 * (sum(of_image) / len(of_image) + all(of_image)) * len(right) / images[category]
        for (category, _), of_image in right.items()
    ]
    cognition = [s if category in COGNITION else 0.0 for s, (category, _) in zip(score, right, strict=True)]
    perception = [s - c for s, c in zip(score, cognition, strict=True)]
    return Scores(score, [1.0] * len(score), {"perception": perception, "cognition": cognition})


def yes_or_no(answer: str) -> str | None:
    """Which of the two an answer begins with; None if neither."""
    head = answer.lower().replace(".", "").strip()[:4]
    if "yes" in head or head == "y":
        return "yes"
    return "no" if "no" in head or head == "n" else None
