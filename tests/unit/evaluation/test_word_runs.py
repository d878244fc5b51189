"""Texts by their words in a row: equal where the words are, and only there."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingu_ray.evaluation.contamination.words import WORDS, word_runs

LONG = "The quick brown fox jumps over the lazy dog, and then it sleeps in the sun."


@given(st.lists(st.sampled_from("abcd"), max_size=40))
def test_each_hash_stands_for_its_words(words: list[str]) -> None:
    """Against the words themselves: as many, in order, and equal where and only where the words are."""
    length = min(WORDS, len(words))
    expected = [tuple(words[i : i + length]) for i in range(len(words) - length + 1)] if words else []
    hashes = word_runs(" ".join(words)).tolist()
    assert len(hashes) == len(expected)
    assert len(set(hashes)) == len({*expected}) == len({*zip(hashes, expected, strict=True)})


@pytest.mark.parametrize(
    "same",
    [
        LONG.upper(),
        LONG.replace(" ", "\n  "),
        f"«{LONG.replace(',', ' –')}»",
        LONG.replace("fi", "ﬁ").replace("quick", "ｑｕｉｃｋ"),
        LONG.replace("quick", "_quick_").replace("lazy", "**lazy**").replace("dog,", "dog ____ ,"),
        LONG.replace("jumps", "ju\u00admps").replace("The", "\ufeffThe").replace("over", "\u200bover\u200e"),
    ],
)
def test_what_does_not_count(same: str) -> None:
    """Case, punctuation, underscores too, spaces, forms of letters that print alike, and marks that do not print."""
    assert word_runs(same).tolist() == word_runs(LONG).tolist()


@pytest.mark.parametrize(
    "other", [LONG.replace("fox", "cat"), f"{LONG} Well", " ".join(re.findall(r"\w+", LONG)[::-1])]
)
def test_what_counts(other: str) -> None:
    """Words, their number and their order."""
    assert word_runs(other).tolist() != word_runs(LONG).tolist()


@pytest.mark.parametrize("text", ("今日は天気がいいので公園を散歩しました", "วันนี้อากาศดีฉันจึงไปเดินเล่นที่สวน"))
def test_scripts_without_spaces(text: str) -> None:
    """Each character is a word, so that a quotation in the middle of a longer text is found."""
    assert set(word_runs(text).tolist()) < set(word_runs(f"前{text}後").tolist())


def test_texts_without_words() -> None:
    """They quote nothing."""
    assert len(word_runs("")) == len(word_runs("… !? \n")) == 0
