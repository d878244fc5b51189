"""Normalizing: the build's tasks that read file splits and turn records into rows, or into rejects with a reason."""

from __future__ import annotations

import itertools
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from lingu_ray.config import SourceConfig
from lingu_ray.corpus.check import Checker
from lingu_ray.corpus.encode import Encoder
from lingu_ray.corpus.formats import FORMATS
from lingu_ray.corpus.image_folder import ImageFolder
from lingu_ray.corpus.readers import FileSplit, reading
from lingu_ray.corpus.record import BadRecord, Numbered, RawRow, Record
from lingu_ray.corpus.split_names import check_not_held_out
from lingu_ray.corpus.store import MESSAGES
from lingu_ray.errors import UserError, printable
from lingu_ray.storage import local_copy

ROWS_PER_BLOCK = 64
EXCERPT = 200  # characters
_ADDRESS = re.compile(r"(?<= object) at 0x[0-9a-f]+(?=>)")
NOT_OF_THE_ROW = (UserError, KeyboardInterrupt, SystemExit, GeneratorExit)

NORMALIZED = pa.schema(
    [
        ("key", pa.int64()),  # file split << 32 | number among its good rows, or its rejects: sorts as the files do
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
    image_folder: ImageFolder
    processor_dir: str
    max_length: int
    trust_remote_code: bool

    def tables(self) -> Iterator[pa.Table]:
        """Rows and rejects of `NORMALIZED`, a block at a time."""
        rows: list[dict[str, Any]] = []
        numbers = {good: itertools.count() for good in (True, False)}
        for row in self._rows():
            number = next(numbers["reason" not in row])
            rows.append(row | {"key": self.index << 32 | number, "source": self.source.name})
            if len(rows) == ROWS_PER_BLOCK:
                yield pa.Table.from_pylist(rows, NORMALIZED)
                rows = []
        yield pa.Table.from_pylist(rows, NORMALIZED)

    def _rows(self) -> Iterator[dict[str, Any]]:
        encoder = load_encoder(self.processor_dir, self.max_length, self.trust_remote_code)
        checker = Checker(encoder, self.source.name, self.source.language_heavy)
        for number, record in self._records():
            origin = {"origin": _storable(self.split.origin(number))}
            for row in rows_of(self._raw_rows(record), checker, self.image_folder):
                yield row | origin

    def _raw_rows(self, record: Record | BadRecord) -> Iterator[RawRow]:
        if isinstance(record, BadRecord):
            raise record
        check_not_held_out(record)
        yield from FORMATS[self.source.format](record, self.source)

    def _records(self) -> Iterator[Numbered]:
        with reading(self.source.name, self.split.path):
            yield from self.split.records()


def rows_of(raw_rows: Iterator[RawRow], checker: Checker, folder: ImageFolder) -> Iterator[dict[str, Any]]:
    """The fields of the rows that a record makes; whatever a row raises, wherever, makes it a reject.

    A fault that is not the row's own meets every row, so `max_reject_rate` ends the build and shows what was raised.

    Raises:
        UserError: a fault of the whole source, or of the model.
    """
    while True:
        try:
            raw_row = next(raw_rows, None)
            if raw_row is None:
                return
            fields = checker.check(raw_row, folder)
        except NOT_OF_THE_ROW:
            raise
        except BaseException as error:  # a panic of the tokenizer's Rust code is not an Exception
            fields = as_reject(error)
        yield fields


def as_reject(error: BaseException) -> dict[str, Any]:
    """The fields of a reject: what nobody foresaw is counted under the error's name, and says where it was raised."""
    if isinstance(error, BadRecord):
        return {"reason": error.reason, "excerpt": _storable(_said(error.detail))}
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown place"
    kind = type(error).__name__
    return {"reason": kind, "excerpt": _storable(f"{kind}: {_said(str(error))} ({where})")}


def _said(message: str) -> str:
    """The beginning of a message, without addresses of objects: the same row is told in the same words each time."""
    return _ADDRESS.sub("", message)[:EXCERPT]


def _storable(text: str) -> str:
    """Text that Arrow and terminals take: half surrogates, which names of files and broken records have, are escaped,
    and control characters.
    """
    return printable(text.encode(errors="backslashreplace").decode())


@lru_cache(maxsize=1)
def load_encoder(processor_dir: str, max_length: int, trust_remote_code: bool) -> Encoder:
    """The encoder of a saved processor, in a folder or at a location, loaded and checked once per process.

    Raises:
        UserError: its chat template is one that no row could be trained with.
    """
    from lingu_ray.corpus.processor import run_processor  # slow to import: only where it is used

    encoder = Encoder(run_processor(local_copy(processor_dir), trust_remote_code), max_length)
    encoder.check_template()
    return encoder
