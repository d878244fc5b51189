"""Records of CSV and TSV files: no line and no column of a bad one is lost in silence."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO, cast

from lingu_ray.corpus.compression import RECORD_BYTES, inner_suffix, open_file
from lingu_ray.corpus.record import BadRecord, Numbered, Record


def csv_records(path: str) -> Iterator[Numbered]:
    """Rows under a header. Values are text as written; a quoted one may hold line breaks.

    A carriage return alone ends no line: pandas writes it without quotes, and half a row might pass for one.

    Raises:
        ValueError: no header that can be read, or one in another encoding, or with a column twice.
    """
    csv.field_size_limit(RECORD_BYTES // 4)  # `csv` keeps four bytes a character
    delimiter = "\t" if inner_suffix(path) == ".tsv" else ","
    with (
        open_file(path) as file,
        io.TextIOWrapper(cast(BinaryIO, file), "utf-8-sig", errors="surrogateescape", newline="\n") as text,
    ):
        lines = (_ALONE.sub(_RETURN, line) for line in _lines(text))
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        header = next((row for row in rows if row), [])
        if _RETURN in "".join(header):
            raise ValueError("its lines end with carriage returns alone: end them with line feeds (tr '\\r' '\\n')")
        check_columns([name for name in header if name])
        if not _is_utf8(header):
            check_encoding("".join(header).encode("utf-8", "surrogateescape"))
            raise ValueError("it is not UTF-8 text")
        yield from _csv_records(rows, header)


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    for number, line in enumerate(iter(partial(text.readline, RECORD_BYTES), ""), 1):
        if len(line) == RECORD_BYTES:
            raise ValueError(f"line {number} has more than {RECORD_BYTES:,} characters, which no record has")
        yield line


_ALONE = re.compile(r"\r(?!\n)")
_RETURN = "\ud80d"  # stands for it, which `csv` takes for a line's end; in no text that was decoded


def _csv_records(rows: Any, header: list[str]) -> Iterator[Numbered]:
    """Records of a `csv.reader`; every line of a bad row is a bad record, for a stray quote swallows good ones."""
    while True:
        before: int = rows.line_num
        try:
            fields = next(rows, None)
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise ValueError(f"a quote in line {before + 1} is never closed, so the file may be cut off") from error
            if "field larger" in str(error):  # what follows would be read without its quote
                raise ValueError(f"line {before + 1} begins a row with a {error}: close its quote") from error
            lines = range(before + 1, rows.line_num + 1)
            bad = BadRecord("bad_csv", f"{error}, in the row of lines {lines[0]} to {lines[-1]}")
            yield from ((line, bad) for line in lines)
            continue
        if fields is None:
            return
        if fields:
            yield before + 1, _csv_record(header, fields)


def _csv_record(header: list[str], fields: list[str]) -> Record | BadRecord:
    if len(fields) != len(header):
        return BadRecord("bad_csv", f"{len(fields)} fields, and {len(header)} columns: {fields!r:.120}")
    if not _is_utf8(fields):
        return BadRecord("bad_csv", f"not UTF-8 text: {fields!r:.120}")
    if found := next(filter(_QUOTED_AFTER_BLANK.fullmatch, fields), None):
        return BadRecord("bad_csv", f"a blank before the quote of {found:.60}: take such blanks out")
    return {name: value.replace(_RETURN, "\r") for name, value in zip(header, fields, strict=True) if name}


_QUOTED_AFTER_BLANK = re.compile(r' +"(?:[^"]|"")*"\s*')  # its quotes would be text


def _is_utf8(fields: list[str]) -> bool:
    """Whether `surrogateescape` had nothing to put in place of other bytes."""
    return not any("\udc80" <= character <= "\udcff" for character in "".join(fields))


def check_columns(names: list[str]) -> None:
    """Raise ValueError where two columns have one name: a record would keep one of them."""
    if repeated := {name for name, count in Counter(names).items() if count > 1}:
        raise ValueError(f"it names a column twice: {', '.join(sorted(repeated))}")


def check_encoding(head: bytes) -> None:
    """Raise ValueError for the beginning of a text file in UTF-16, as Windows writes them."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it is in UTF-16: convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)")
