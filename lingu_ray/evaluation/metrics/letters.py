"""Multiple choice by answering: which option's letter does an answer name?"""

from __future__ import annotations

import re
from string import ascii_uppercase

from lingu_ray.evaluation.metrics.metric import Columns, Scores

# From the plainest to the least certain way to name an option; of several in one answer, the last.
_FORMS = tuple(
    re.compile(form)
    for form in (
        r"^\W*([A-Z])[).:,\n]",  # B. a red bus
        r"\b(?:[Aa]nswer|[Oo]ption|[Cc]hoice)(?: is)?:?\W+([A-Z])\b",  # the answer is (B)
        r"\(([A-Z])\)",  # it must be (B)
        r"^\W*([A-Z])\b",  # B a red bus
    )
)


def judge_letters(columns: Columns) -> Scores:
    """Accuracy: 1 where the option that the answer names is `gold`."""
    named = [named_option(p, c) for p, c in zip(columns["prediction"], columns["choices"], strict=True)]
    score = [float(option == gold) for option, gold in zip(named, columns["gold"], strict=True)]
    return Scores(score, [1.0] * len(score), {})


def named_option(answer: str, choices: list[str]) -> int | None:
    """Index of the option whose letter or text the answer is, or whose letter it names; None if it names none."""
    if letter := re.fullmatch(r"\W*([A-Za-z])\W*", answer):
        return _index(letter[1].upper(), choices)
    texts = [_plain(choice) for choice in choices]
    if (plain := _plain(answer)) in texts:
        return texts.index(plain)
    found = next((letters for form in _FORMS if (letters := form.findall(answer))), None)
    return _index(found[-1], choices) if found else None


def _index(letter: str, choices: list[str]) -> int | None:
    index = ascii_uppercase.index(letter)
    return index if index < len(choices) else None


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")
