"""File splits, and a reader for each kind of file: from bytes to numbered records.

A reader yields `(number, record)` pairs; `number` counts from 1 within the file (JSONL, CSV, text: the line). A record
that cannot be read is yielded as a `BadRecord`, so that a bad line costs one line; a file that is damaged as a whole, a
compressed one that was cut off for instance, raises one of `UNREADABLE`: half of its records are never taken for all.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lingu_ray import storage
from lingu_ray.corpus.arrow import in_decimals, json_columns, open_arrow, random_access, unquoted
from lingu_ray.corpus.compression import RECORD_BYTES, open_file, read_block
from lingu_ray.corpus.csv_records import check_columns, check_encoding, csv_records
from lingu_ray.corpus.json_array import array_parts
from lingu_ray.corpus.labels import Labels, labels_of
from lingu_ray.corpus.record import BadRecord, Numbered, Record
from lingu_ray.corpus.tar import members
from lingu_ray.errors import UserError
from lingu_ray.literals import from_json

COLUMN_BUFFER = 1 << 20  # bytes
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    csv.Error,
    lzma.LZMAError,
    pa.ArrowException,
    tarfile.TarError,
    zlib.error,
)  # what a damaged file raises


@contextmanager
def reading(source: str, path: str) -> Iterator[None]:
    """Whatever a damaged file raises becomes a `UserError` that names source and file."""
    try:
        yield
    except UNREADABLE as error:
        raise UserError(f"source {source}: {path} cannot be read: {error}") from error


@dataclass(frozen=True)
class FileSplit:
    """Part of a file: bytes (lines, text, json), row groups (parquet), batches (arrow), or all (`stop` is 0).

    Of a large row group it may be a part, from record `first` on.

    `first`: records of the file before it. `limit`: at most so many of its records are read, of plain text so many of
    its lines; None: all. `label_names`: class labels are read as their names, not as numbers.
    """

    kind: str
    path: str
    start: int = 0
    stop: int = 0
    first: int = 0
    limit: int | None = None
    files: tuple[str, ...] = ()
    label_names: bool = True

    def records(self) -> Iterator[Numbered]:
        """Its records with their numbers."""
        return itertools.islice(READERS[self.kind](self), self.limit)

    def count(self, limit: int) -> int:
        """How many of at most so many records it has, or lines, which `limit` counts."""
        counted = _text_lines(self) if self.kind == "text" else self.records()
        return sum(1 for _ in itertools.islice(counted, limit))

    def origin(self, number: int) -> str:
        """Where a record comes from, human-readable."""
        return self.files[number - self.first - 1] if self.files else f"{self.path}:{number}"


def _blocks(split: FileSplit) -> Iterator[tuple[int, bytes]]:
    """Blocks of whole lines, each with the number of lines before it: the split's own, or all of a whole file."""
    if split.stop:
        with storage.open_file(split.path, buffering=0) as file:
            file.seek(split.start)
            block = file.read(split.stop - split.start) or b""
        if not split.start:
            check_encoding(block)
        yield split.first, block
        return
    line = 0
    with open_file(split.path) as file:
        while block := read_block(file):
            if not line:
                check_encoding(block)
            yield line, block
            line += block.count(b"\n")


def _read_lines(split: FileSplit) -> Iterator[Numbered]:
    for first, block in _blocks(split):
        for number, line in enumerate(block.split(b"\n"), first + 1):
            if line.strip():
                yield number, _parse(line)


def _parse(line: bytes) -> Record | BadRecord:
    try:
        return _as_record(from_json(line))
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, too deep, a key given twice
        return BadRecord("bad_json", f"{error}: {line[:120]!r}")


def _as_record(value: Any) -> Record | BadRecord:
    if isinstance(value, dict):
        return value
    return BadRecord("wrong_type", f'a record must be an object, such as {{"messages": [turns]}}: {value!r:.120}')


def _read_json(split: FileSplit) -> Iterator[Numbered]:
    first, number = split.first, 0
    for encoded in _json_parts(split):
        try:
            content = from_json(encoded)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"neither a JSON array of records nor JSON lines: {error}") from error
        for number, value in enumerate(content if isinstance(content, list) else [content], first + 1):
            yield number, _as_record(value)
        first = number


def _json_parts(split: FileSplit) -> Iterator[bytes]:
    """The split's own part of an array, the parts of a whole one, or the whole of what is none."""
    with open_file(split.path) as file:
        if split.stop:
            file.seek(split.start)
            yield b"[%b]" % file.read(split.stop - split.start)
            return
        part = None
        for part in array_parts(file):
            yield b"[%b]" % part.encoded
    if part is None:
        with open_file(split.path) as file:
            whole = file.read(RECORD_BYTES + 1)
        if len(whole) > RECORD_BYTES:
            raise ValueError(f"more than {RECORD_BYTES:,} bytes of JSON in one piece: write JSON Lines in UTF-8")
        yield whole


def _read_text(split: FileSplit) -> Iterator[Numbered]:
    """Each run of a block's lines that are UTF-8 as a record, unless all are blank; each other line as a bad one."""
    lines = itertools.islice(_text_lines(split), split.limit)
    for (_, fault), run in itertools.groupby(lines, key=lambda line: (line.block, _utf8_fault(line.content))):
        of_run = list(run)
        if fault:
            bad = (BadRecord("wrong_type", f"{fault}: {line.content[:80]!r}") for line in of_run)
            yield from zip((line.number for line in of_run), bad, strict=True)
        elif (text := b"".join(line.content for line in of_run).decode()).strip():
            yield of_run[0].number, {"text": text}


class _Line(NamedTuple):
    number: int
    content: bytes
    block: int


def _text_lines(split: FileSplit) -> Iterator[_Line]:
    """Its lines, with the number of lines before their block."""
    for first, block in _blocks(split):
        whole = block if first else block.removeprefix(codecs.BOM_UTF8)
        for number, line in enumerate(io.BytesIO(whole), first + 1):
            yield _Line(number, line, first)


def _utf8_fault(line: bytes) -> str:
    """Why bytes are no UTF-8 text; empty where they are."""
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return f"not UTF-8 text: {error}"
    return ""


def _read_parquet(split: FileSplit) -> Iterator[Numbered]:
    """Through a buffer for each column of a local file: pyarrow would else read whole row groups before their rows.

    Of a remote one it does: the columns of a row group in few requests.
    """
    whole_groups = storage.is_remote(split.path)
    with pq.ParquetFile(random_access(split.path), pre_buffer=whole_groups, buffer_size=COLUMN_BUFFER) as file:
        batches = file.iter_batches(batch_size=64, row_groups=list(range(split.start, split.stop)))
        before = sum(file.metadata.row_group(group).num_rows for group in range(split.start))
        yield from _rows(split, file.schema_arrow, _from_row(batches, split.first - before))


def _from_row(batches: Iterable[pa.RecordBatch], row: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch.slice(min(row, len(batch)))
        row = max(0, row - len(batch))


def _read_arrow(split: FileSplit) -> Iterator[Numbered]:
    with open_arrow(split.path) as (schema, batches):
        yield from _rows(split, schema, itertools.islice(batches, split.start, split.stop))


def _rows(split: FileSplit, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[Numbered]:
    check_columns(schema.names)
    labels = labels_of(schema, split.path) if split.label_names else Labels({})
    columns = json_columns(schema)

    def read(record: Record | BadRecord) -> Record | BadRecord:
        if isinstance(record, BadRecord):
            return record
        return labels.named(record | {name: unquoted(record[name], type) for name, type in columns.items()})

    records = (read(record) for batch in batches for record in _records(in_decimals(batch)))
    return enumerate(records, split.first + 1)


def _records(batch: pa.RecordBatch) -> list[Record | BadRecord]:
    try:
        return batch.to_pylist(maps_as_pydicts="strict")
    except _NOT_OF_PYTHON:  # of one row, perhaps
        return [_record(batch.slice(row, 1)) for row in range(batch.num_rows)]


def _record(row: pa.RecordBatch) -> Record | BadRecord:
    record: Record = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            record[name] = column[0].as_py(maps_as_pydicts="strict")
        except _NOT_OF_PYTHON as error:
            return BadRecord("wrong_type", f"{name!r} cannot be read: {error}")
    return record


_NOT_OF_PYTHON = (ValueError, OverflowError, KeyError)
"""What a value raises that Python has none for: text that is not UTF-8, a date beyond year 9999, an unknown zone; a map
that gives a key twice."""


def split_labels(split: FileSplit) -> Labels:
    """The class labels of a file split; files that hold no schema have none."""
    if split.kind == "parquet":
        return labels_of(pq.read_schema(random_access(split.path)), split.path)
    if split.kind == "arrow":
        with open_arrow(split.path) as (schema, _):
            return labels_of(schema, split.path)
    return Labels({})


def _read_images(split: FileSplit) -> Iterator[Numbered]:
    for number, path in enumerate(split.files, split.first + 1):
        label = Path(path).parent.name.replace("-", " ").replace("_", " ")
        yield number, {"image": path, "label": label}


def _read_tar(split: FileSplit) -> Iterator[Numbered]:
    """Samples of a WebDataset: neighboring members that share the name up to the first dot of its last part."""
    with open_file(split.path) as file:
        named = ((*_member_name(name), content) for name, content in members(file))
        for number, (key, group) in enumerate(itertools.groupby(named, key=lambda member: member[0]), 1):
            sample: Record = {}
            twice = [suffix for _, suffix, content in group if sample.setdefault(suffix, content) is not content]
            yield number, BadRecord("wrong_type", f"sample {key} has {twice[0]} twice") if twice else sample


def _member_name(name: str) -> tuple[str, str]:
    folder, _, last = name.rpartition("/")
    key, _, suffix = last.partition(".")
    return f"{folder}/{key}", suffix.lower()


READERS: dict[str, Callable[[FileSplit], Iterator[Numbered]]] = {
    "lines": _read_lines,
    "json": _read_json,
    "text": _read_text,
    "csv": lambda split: csv_records(split.path),
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "images": _read_images,
    "tar": _read_tar,
}
