"""CIDEr and ROUGE-L of captions against several references, as the COCO evaluation computes them.

CIDEr here is CIDEr-D: cosine similarity of n-gram counts weighted by their rarity among all items' references, with
counts clipped and a penalty for another length, times 10. Every item has its own score; their mean is the corpus's.

Captions are split into words as the COCO evaluation does: Penn Treebank tokens in lower case, without punctuation.
COCO's own splitter is Stanford's PTBTokenizer, a Java program. On captions this gives the same words; it differs on
what captions seldom hold: runs such as `!!!`, underscores, and apostrophes that begin a word ('60s). Of scripts without
spaces it takes whole sentences for words, so that only equal captions would agree; here each character is one.
"""

from __future__ import annotations

import math
import re
from collections import Counter

from rapidfuzz.distance import LCSseq

from lingu_ray.evaluation.contamination.words import WITHOUT_SPACES
from lingu_ray.evaluation.metrics.metric import Columns, Scores

ORDERS = 4  # n-grams of 1 to 4 words
SIGMA = 6.0  # words; standard deviation of the penalty for another length
BETA = 1.2  # weight of recall over precision in ROUGE-L

Words = list[str]
Gram = tuple[str, ...]

_TYPOGRAPHIC = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "—": "-", "–": "-", "…": "."})
_ALONE = re.compile(f"[{WITHOUT_SPACES}]")
_CLITIC = r"'(?:s|re|ve|ll|d|m)(?!\w)"
_WORD = re.compile(
    rf"""
      (?:[a-z]\.){{2,}} | (?:mr|mrs|ms|dr|st|ave|mt|jr|vs|etc)\.   # u.s., mr.
    | {_CLITIC} | n't(?!\w) | \w+?(?=n't(?!\w))                    # it 's, do n't
    | can(?=not\b) | (?:gon|wan)(?=na\b) | got(?=ta\b) | (?:lem|gim)(?=me\b)
    | \w+(?:(?:[-./&]|(?!{_CLITIC})'|(?<=\d)[,:](?=\d))\w+)*       # t-shirt, o'clock, 1,000, 10:30
    | [^\w\s.,:;!?'"`-]                                            # $, %, &
    """,
    re.VERBOSE,
)


def judge_cider(columns: Columns) -> Scores:
    """CIDEr of each item, and ROUGE-L as an extra."""
    captions = [caption_words(text) for text in columns["prediction"]]
    references = [[caption_words(text) for text in texts] for texts in columns["answers"]]
    extra = {"rouge_l": [rouge_l_of_words(*item) for item in zip(captions, references, strict=True)]}
    return Scores(cider_of_words(captions, references), [1.0] * len(captions), extra)


def caption_words(text: str) -> list[str]:
    """The words of a caption; of Chinese, Japanese, Thai and their like the characters."""
    return _WORD.findall(_ALONE.sub(r" \g<0> ", text.lower().translate(_TYPOGRAPHIC)))


def rouge_l(prediction: str, answers: list[str]) -> float:
    """ROUGE-L of a caption: see `rouge_l_of_words`."""
    return rouge_l_of_words(caption_words(prediction), [caption_words(answer) for answer in answers])


def rouge_l_of_words(caption: Words, references: list[Words]) -> float:
    """F-measure of the longest common subsequence: best precision and best recall over the references."""
    common = [LCSseq.similarity(caption, reference) for reference in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(caption)
    recall = max(c / len(reference) for c, reference in zip(common, references, strict=True) if c)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def cider_of_words(captions: list[Words], references: list[list[Words]]) -> list[float]:
    """CIDEr of each caption against its references; rarity is counted over the references of all items."""
    references_grams = [[_grams(words) for words in of_item] for of_item in references]
    items_with = Counter(gram for of_item in references_grams for gram in set().union(*of_item))
    rarity = {gram: math.log(len(captions) / items) for gram, items in items_with.items()}
    unseen = math.log(len(captions))

    def vector(grams: Counter[Gram]) -> list[dict[Gram, float]]:
        """Weighted counts by order."""
        weighted: list[dict[Gram, float]] = [{} for _ in range(ORDERS)]
        for gram, count in grams.items():
            weighted[len(gram) - 1][gram] = count * rarity.get(gram, unseen)
        return weighted

    def score(words: Words, of_item: list[Words], grams_of_item: list[Counter[Gram]]) -> float:
        caption = vector(_grams(words))
        similarities = [
            _similarity(caption, vector(grams)) * math.exp(-((len(words) - len(reference)) ** 2) / (2 * SIGMA**2))
            for reference, grams in zip(of_item, grams_of_item, strict=True)
        ]
        return 10 * sum(similarities) / len(similarities)

    return [score(*item) for item in zip(captions, references, references_grams, strict=True)]


def _grams(words: Words) -> Counter[Gram]:
    return Counter(tuple(words[i : i + n]) for n in range(1, ORDERS + 1) for i in range(len(words) - n + 1))


def _similarity(caption: list[dict[Gram, float]], reference: list[dict[Gram, float]]) -> float:
    """Mean over the orders of the cosine, the caption's weights clipped to the reference's."""
    total = 0.0
    for c, r in zip(caption, reference, strict=True):
        norm = math.hypot(*c.values()) * math.hypot(*r.values())
        if norm:
            total += sum(min(weight, r[gram]) * r[gram] for gram, weight in c.items() if gram in r) / norm
    return total / ORDERS
