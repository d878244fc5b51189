"""Captions as words, cut as the COCO evaluation cuts them: Penn Treebank tokens in lower case, without punctuation.

COCO's own cutting is Stanford's PTBTokenizer, a Java program. On captions this gives the same words; it differs on what
captions seldom hold: runs such as `!!!`, underscores, and apostrophes that begin a word ('60s).
"""

from __future__ import annotations

import re

_TYPOGRAPHIC = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "—": "-", "–": "-", "…": "."})
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


def caption_words(text: str) -> list[str]:
    """The words of a caption."""
    return _WORD.findall(text.lower().translate(_TYPOGRAPHIC))
