"""The tasks of a build that read pieces: records become rows, or rejects that say why."""

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
from lingu_ray.corpus.formats import FORMATS, BadRecord, Draft
from lingu_ray.corpus.pieces import UNREADABLE, Numbered, Piece, Record
from lingu_ray.corpus.store import MESSAGES
from lingu_ray.errors import UserError

ROWS_PER_BLOCK = 64
EXCERPT = 200  # characters

DRAFTED = pa.schema(
    [
        ("key", pa.int64()),  # piece, place in the piece: sorts as the files do
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
class PieceTask:
    """One piece with what it takes to turn it into rows; `index` counts pieces over all sources."""

    index: int
    piece: Piece
    source: SourceConfig
    image_folder: str  # where relative image paths start
    processor_dir: str
    max_length: int

    def tables(self) -> Iterator[pa.Table]:
        """Rows and rejects of `DRAFTED`, a block at a time."""
        rows: list[dict[str, Any]] = []
        for place, row in enumerate(self._rows()):
            rows.append(row | {"key": self.index << 32 | place, "source": self.source.name})
            if len(rows) == ROWS_PER_BLOCK:
                yield pa.Table.from_pylist(rows, DRAFTED)
                rows = []
        yield pa.Table.from_pylist(rows, DRAFTED)

    def _rows(self) -> Iterator[dict[str, Any]]:
        encoder = load_encoder(self.processor_dir, self.max_length)
        checker = Checker(encoder, self.source.name, self.source.language_heavy)
        folder = Path(self.image_folder)
        for number, record in self._records():
            origin = {"origin": self.piece.origin(number)}
            for draft in self._drafts(record):
                yield (
                    as_reject(draft) if isinstance(draft, BadRecord) else checked_row(checker, draft, folder)
                ) | origin

    def _drafts(self, record: Record | BadRecord) -> Iterator[Draft | BadRecord]:
        if isinstance(record, BadRecord):
            yield record
            return
        try:
            yield from FORMATS[self.source.format](record, self.source)
        except BadRecord as bad:
            yield bad

    def _records(self) -> Iterator[Numbered]:
        try:
            yield from self.piece.records()
        except UNREADABLE as error:
            raise UserError(f"source {self.source.name}: {self.piece.path} cannot be read: {error}") from error


def checked_row(checker: Checker, draft: Draft, folder: Path) -> dict[str, Any]:
    """The fields of a good row, or those of a reject: one bad passage of a document costs one passage."""
    try:
        checked = checker.check(draft, folder)
    except BadRecord as bad:
        return as_reject(bad)
    row = checked.row
    return {"messages": row.messages, "images": row.images, "distill": row.distill, "truncated": checked.truncated}


def as_reject(bad: BadRecord) -> dict[str, Any]:
    """The fields of a reject."""
    return {"reason": bad.reason, "excerpt": bad.detail[:EXCERPT]}


@lru_cache(maxsize=1)
def load_encoder(processor_dir: str, max_length: int) -> Encoder:
    """The encoder of a saved processor, loaded once a process."""
    from transformers import AutoProcessor  # slow to import: only where it is used

    return Encoder(AutoProcessor.from_pretrained(processor_dir), max_length)
