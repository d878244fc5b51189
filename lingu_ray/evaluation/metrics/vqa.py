"""The VQA score: an answer is right as far as people gave it too, after the official normalization.

VQAv2 and TextVQA hold ten people's answers to a question. Each person in turn is left out: the answer scores a third
for each of the others who gave it, at most 1; the score is the mean over whom to leave out.
"""

from __future__ import annotations

import re

from lingu_ray.errors import UserError

ENOUGH = 4
"""Answers to an item below which no answer can score 1."""

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_SMALL = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_SMALL)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}

# What the official table restores; a contraction is known with any one of its apostrophes left out.
_CONTRACTIONS = """
    'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
    needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's
    there'd there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
_RESTORED = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTIONS.split()
    for place, letter in enumerate(word)
    if letter == "'"
}


def vqa_accuracy(prediction: str, answers: list[str]) -> float:
    """Mean over the answers of min(1, matches among the others / 3).

    Raises:
        UserError: fewer than four answers, among which none can score 1.
    """
    if len(answers) < ENOUGH:
        raise UserError(
            f"vqa_accuracy wants the answers of several people (VQAv2 and TextVQA have ten), found {answers}; "
            "where one answer is right, take type exact_match"
        )
    said, total = normalize_vqa(prediction), len(answers)
    matches = sum(normalize_vqa(answer) == said for answer in answers)
    if not matches:
        return 0.0
    # A person who agrees leaves one match less among the others.
    return (matches * min(1.0, (matches - 1) / 3) + (total - matches) * min(1.0, matches / 3)) / total


def normalize_vqa(answer: str) -> str:
    """Lower case, digits for small numbers, contractions with their apostrophe; no articles, no punctuation."""
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    number = re.search(r"\d,+\d", text) is not None  # then every mark goes without leaving a space: 1,000 is 1000
    gone = [mark for mark in _MARKS if number or f"{mark} " in text or f" {mark}" in text]
    text = text.translate({ord(mark): "" if mark in gone else " " for mark in _MARKS})
    text = re.sub(r"\.(?!\d)", "", text)
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)
