"""Cuts a JSON array into parts of whole records, so that tasks can each read one, and none holds all of them."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from io import BufferedIOBase
from typing import NamedTuple

from lingu_ray.corpus.compression import LINES_BYTES, RECORD_BYTES

HEAD = 4  # bytes that tell an encoding
_ENCODINGS = ("utf-8", "utf-8-sig")
_SIGN = re.compile(r"[ \t\n\r]*([\[,\]]?)[ \t\n\r]*")  # matches everywhere
_DECODER = json.JSONDecoder()


class Part(NamedTuple):
    """Records with the commas between them. `start`, `stop`: bytes of the file; `first`: records before them."""

    start: int
    stop: int
    first: int
    encoded: bytes


def array_parts(file: BufferedIOBase) -> Iterator[Part]:
    """Parts of about `LINES_BYTES` each; none of what is no array in UTF-8, or an empty one. Two are in memory.

    Raises:
        ValueError: an array that is cut off or damaged, or with a record of more than `RECORD_BYTES`.
    """
    window = _Window(file)
    start = stop = first = count = 0
    for begin, stop in _records(window):
        start = start if count else begin
        count += 1
        if stop - start >= LINES_BYTES:
            yield window.part(start, stop, first)
            first, count = first + count, 0
            window.drop(stop)
    if count:
        yield window.part(start, stop, first)


def _records(window: _Window) -> Iterator[tuple[int, int]]:
    """Where each element of an array begins and ends, in bytes of the file."""
    sign, place = window.sign(len(codecs.BOM_UTF8) if window.has_bom else 0)
    if not window.is_utf8 or sign != "[" or window.sign(place)[0] == "]":
        return
    while sign != "]":
        yield place, (end := window.end_of_value(place))
        sign, place = window.sign(end)
        if sign not in (",", "]"):
            raise _damaged(f"no comma (byte {end})")
    if place != window.stop:
        raise _damaged(f"more after the array (byte {place})")


def _damaged(what: str) -> ValueError:
    return ValueError(f"neither a JSON array of records nor JSON lines: {what}")


class _Window:
    """A part of a file, as a character for each byte. It grows as far as it is looked at; places are bytes of the file.

    `ended`: it reaches the end of the file.
    """

    def __init__(self, file: BufferedIOBase) -> None:
        self.file, self.begin, self.text, self.ended = file, 0, "", False
        while len(self.text) < HEAD and self._grow():
            pass
        head = self.text[:HEAD].encode("latin-1")
        self.has_bom = head.startswith(codecs.BOM_UTF8)
        self.is_utf8 = json.detect_encoding(head) in _ENCODINGS

    @property
    def stop(self) -> int:
        """Where it ends."""
        return self.begin + len(self.text)

    def part(self, start: int, stop: int, first: int) -> Part:
        """The records between two places."""
        return Part(start, stop, first, self.text[start - self.begin : stop - self.begin].encode("latin-1"))

    def drop(self, place: int) -> None:
        """Forget what lies before a place."""
        self.text, self.begin = self.text[place - self.begin :], place

    def sign(self, place: int) -> tuple[str, int]:
        """The bracket or comma at a place, and where what follows begins; empty if there is none."""
        while True:
            found = next(_SIGN.finditer(self.text, place - self.begin))
            if self.begin + found.end() < self.stop or not self._grow():
                return found[1], self.begin + found.end()

    def end_of_value(self, place: int) -> int:
        """Where the value that begins at a place ends."""
        while True:
            try:
                end = self.begin + _DECODER.raw_decode(self.text, place - self.begin)[1]
            except json.JSONDecodeError as error:
                if self.stop - place <= RECORD_BYTES and self._grow():
                    continue
                what = f"{error.msg} (byte {self.begin + error.pos})"
                more = "" if self.ended else f", or more than {RECORD_BYTES:,} bytes in one record"
                raise _damaged(what + more) from error
            except RecursionError as error:
                raise _damaged(f"too deep (byte {place})") from error
            if end < self.stop or not self._grow():
                return end

    def _grow(self) -> bool:
        more = self.file.read(max(LINES_BYTES, len(self.text)))
        self.text += more.decode("latin-1")
        self.ended = not more
        return bool(more)
