"""Normalizing: the build's tasks that read file splits and turn records into rows, or into rejects with a reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from lingu_ray.config import SourceConfig
from lingu_ray.corpus.check import Checker
from lingu_ray.corpus.encode import Encoder
from lingu_ray.corpus.formats import FORMATS, BadRecord, RawRow, Record
from lingu_ray.corpus.readers import UNREADABLE, FileSplit, Numbered
from lingu_ray.corpus.store import MESSAGES
from lingu_ray.errors import UserError

ROWS_PER_BLOCK = 64
EXCERPT = 200  # characters

NORMALIZED = pa.schema(
    [
        ("key", pa.int64()),  # file split << 32 | index in it: sorts as the files do
        ("source", pa.string()),
        ("messages", MESSAGES),
        ("images", pa.list_(pa.large_binary())),
        ("distill", pa.bool_()),
        ("truncated", pa.bool_()),
        ("reason", pa.string()),  # null: a good row
        ("origin", pa.string()),
        ("excerpt", pa.string()),
    ]
)


@dataclass(frozen=True)
class SplitTask:
    """A file split and everything needed to turn it into rows; `index` counts splits over all sources."""

    index: int
    split: FileSplit
    source: SourceConfig
    image_folder: str  # where relative image paths start
    processor_dir: str
    max_length: int

    def tables(self) -> Iterator[pa.Table]:
        """Rows and rejects of `NORMALIZED`, a block at a time."""
        rows: list[dict[str, Any]] = []
        for index, row in enumerate(self._rows()):
            rows.append(row | {"key": self.index << 32 | index, "source": self.source.name})
            if len(rows) == ROWS_PER_BLOCK:
                yield pa.Table.from_pylist(rows, NORMALIZED)
                rows = []
        yield pa.Table.from_pylist(rows, NORMALIZED)

    def _rows(self) -> Iterator[dict[str, Any]]:
        encoder = load_encoder(self.processor_dir, self.max_length)
        checker = Checker(encoder, self.source.name, self.source.language_heavy)
        folder = Path(self.image_folder)
        for number, record in self._records():
            origin = {"origin": self.split.origin(number)}
            for raw_row in self._raw_rows(record):
                yield (
                    as_reject(raw_row) if isinstance(raw_row, BadRecord) else checked_row(checker, raw_row, folder)
                ) | origin

    def _raw_rows(self, record: Record | BadRecord) -> Iterator[RawRow | BadRecord]:
        if isinstance(record, BadRecord):
            yield record
            return
        try:
            yield from FORMATS[self.source.format](record, self.source)
        except BadRecord as bad:
            yield bad

    def _records(self) -> Iterator[Numbered]:
        try:
            yield from self.split.records()
        except UNREADABLE as error:
            raise UserError(f"source {self.source.name}: {self.split.path} cannot be read: {error}") from error


def checked_row(checker: Checker, raw_row: RawRow, folder: Path) -> dict[str, Any]:
    """The fields of a good row, or those of a reject: a bad passage of a document costs that passage alone."""
    try:
        checked = checker.check(raw_row, folder)
    except BadRecord as bad:
        return as_reject(bad)
    row = checked.row
    return {"messages": row.messages, "images": row.images, "distill": row.distill, "truncated": checked.truncated}


def as_reject(bad: BadRecord) -> dict[str, Any]:
    """The fields of a reject."""
    return {"reason": bad.reason, "excerpt": bad.detail[:EXCERPT]}


@lru_cache(maxsize=1)
def load_encoder(processor_dir: str, max_length: int) -> Encoder:
    """The encoder of a saved processor, loaded once per process."""
    from transformers import AutoProcessor  # slow to import: only where it is used

    return Encoder(AutoProcessor.from_pretrained(processor_dir), max_length)
