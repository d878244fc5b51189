"""Words of a text in any script, by white space, or by characters where a script has none between words."""

from __future__ import annotations

import re
import unicodedata

_HAN_AND_KANA = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
_UNSPACED = f"\u0e00-\u109f\u1780-\u17ff{_HAN_AND_KANA}"  # Thai, Lao, Tibetan, Burmese, Khmer, and these
_MARKS = "\u0e33\u0eb3" + "".join(
    mark for mark in map(chr, range(0x0E00, 0x1800)) if unicodedata.category(mark)[0] == "M"
)
_STACKING = "\u1039\u17d2"  # marks below which the next letter stands
_WORD = re.compile(rf"[{_UNSPACED}](?:[{_MARKS}]|(?<=[{_STACKING}])[{_UNSPACED}])*|[^\s{_UNSPACED}]+")


def word_spans(text: str) -> list[tuple[int, int]]:
    """Beginning and end of each word.

    Chinese, Japanese, Thai, Lao, Tibetan, Burmese and Khmer have no white space between words: a character counts as
    one, with what stands above and below it.
    """
    return [match.span() for match in _WORD.finditer(text)]
