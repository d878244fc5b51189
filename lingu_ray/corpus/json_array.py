"""Where the records of a JSON array stand in its file, so that several tasks can each read a part of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from lingu_ray.corpus.compression import LINES_BYTES

_ENCODINGS = ("utf-8", "utf-8-sig")
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()

Span = tuple[int, int, int]
"""Bytes from, bytes to, and how many records come before."""


def array_spans(encoded: bytes) -> list[Span]:
    """Spans of whole records and the commas between them, of about `LINES_BYTES`; none of what is no array in UTF-8."""
    if json.detect_encoding(encoded) not in _ENCODINGS:
        return []
    try:
        text = encoded.decode("utf-8-sig")
        return list(_spans(text, before=len(encoded) - len(text.encode())))
    except (ValueError, RecursionError):  # the reader says what is wrong
        return []


def _spans(text: str, before: int) -> Iterator[Span]:
    """The spans, as bytes; `before` of them stand before the text."""
    begin, begun, read = before, 0, 0  # a span's first byte and character, and the characters of which bytes are known
    first = count = 0
    for start, end in _records(text):
        if not count:
            begin, begun = begin + len(text[read:start].encode()), start
        count += 1
        if end - begun >= LINES_BYTES:
            stop = begin + len(text[begun:end].encode())
            yield begin, stop, first
            begin, read, first, count = stop, end, first + count, 0
    if count:
        yield begin, begin + len(text[begun:end].encode()), first


def _records(text: str) -> Iterator[tuple[int, int]]:
    """Where each element of an array begins and ends. Raises ValueError for what is no array."""
    place = _after(text, _expected(text, _after(text, 0), "["))
    if text[place : place + 1] == "]":
        _check_end(text, place + 1)
        return
    while True:
        _, end = _DECODER.raw_decode(text, place)
        yield place, end
        place = _after(text, end)
        if text[place : place + 1] == "]":
            _check_end(text, place + 1)
            return
        place = _after(text, _expected(text, place, ","))


def _after(text: str, place: int) -> int:
    """The place after white space."""
    found = _SPACE.match(text, place)
    return found.end() if found else place


def _expected(text: str, place: int, sign: str) -> int:
    if text[place : place + 1] != sign:
        raise ValueError(f"no {sign} at {place}")
    return place + 1


def _check_end(text: str, place: int) -> None:
    if _after(text, place) != len(text):
        raise ValueError(f"more after the array, at {place}")
