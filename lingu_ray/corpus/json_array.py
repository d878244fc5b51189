"""Finds the records of a JSON array in its file, so that several tasks can each read a part of it."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator

from lingu_ray.corpus.compression import LINES_BYTES

_ENCODINGS = ("utf-8", "utf-8-sig")
_SIGN = re.compile(r"[ \t\n\r]*([\[,\]])[ \t\n\r]*")
_DECODER = json.JSONDecoder()

Span = tuple[int, int, int]
"""Bytes from, bytes to, and how many records come before."""


def array_spans(encoded: bytes) -> list[Span]:
    """Spans of whole records with their commas, of about `LINES_BYTES` each; none if it is no array in UTF-8."""
    if json.detect_encoding(encoded) not in _ENCODINGS:
        return []
    start = len(codecs.BOM_UTF8) if encoded.startswith(codecs.BOM_UTF8) else 0
    try:
        encoded.decode()
        return list(_spans(encoded.decode("latin-1"), start))  # a character for each byte
    except (ValueError, RecursionError):  # the reader says what is wrong
        return []


def _spans(text: str, start: int) -> Iterator[Span]:
    begin = end = before = count = 0
    for first, end in _records(text, start):
        begin = begin if count else first
        count += 1
        if end - begin >= LINES_BYTES:
            yield begin, end, before
            before, count = before + count, 0
    if count:
        yield begin, end, before


def _records(text: str, start: int) -> Iterator[tuple[int, int]]:
    """Where each element of an array begins and ends. Raises ValueError for anything but an array with elements."""
    sign, place = _sign(text, start)
    if sign != "[":
        raise ValueError("no array")
    while sign != "]":
        _, end = _DECODER.raw_decode(text, place)
        yield place, end
        sign, place = _sign(text, end)
        if sign == "[":
            raise ValueError(f"no comma at {end}")
    if place != len(text):
        raise ValueError(f"more after the array, at {place}")


def _sign(text: str, place: int) -> tuple[str, int]:
    """The next bracket or comma of the array, and the place after it and white space."""
    if not (found := _SIGN.match(text, place)):
        raise ValueError(f"no sign of an array at {place}")
    return found[1], found.end()
