"""Rows and rejects of a source, or a part of them spread over it, made by the tasks of the corpus's build."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lingu_ray.config import SourceConfig
from lingu_ray.corpus.normalize import SplitTask
from lingu_ray.corpus.splits import FileSplit, Numbered, evenly, image_folder, split_source
from lingu_ray.live import LiveLine
from lingu_ray.preview.spread import MatchingSplit, Spread, SpreadSplit

SPLITS = 8  # file splits of a source that a part of its rows comes from

Record = dict[str, Any]
"""A row, or a reject with its `reason`: the columns of `normalize.NORMALIZED`."""


class SourceRows:
    """The rows and rejects of a source; equal data give equal ones.

    Args:
        source: which.
        processor_dir: folder of the student's saved processor.
        max_length: longest sample in tokens.

    Raises:
        UserError: its data are not found or, while iterating, cannot be read.
    """

    def __init__(self, source: SourceConfig, processor_dir: str, max_length: int) -> None:
        self.source, self.processor_dir, self.max_length = source, processor_dir, max_length
        self.splits = split_source(source)
        self.complete = True

    def read(self, count: int | None) -> Iterator[Record]:
        """At most `count` of them, spread over the file splits and in each of these; None: all.

        Shows a live line. `complete` says at the end whether these were all.
        """
        if count is None:
            yield from self._all()
            return
        parts = evenly(self.splits, min(SPLITS, max(count, 2)))
        self.complete = len(parts) == len(self.splits)
        with LiveLine(f"reading {self.source.name}", count, "row", keep=False) as line:
            for index, split in enumerate(parts):
                begun = index * count // len(parts)
                yield from self._part(split, (index + 1) * count // len(parts) - begun, begun, line)

    def _all(self) -> Iterator[Record]:
        rows = 0
        with LiveLine(f"reading {self.source.name}", len(self.splits), "file split", keep=False) as line:
            for done, split in enumerate(self.splits):
                for record in self._records(split):
                    rows += 1
                    line.show(done, f"{rows} rows")
                    yield record

    def _part(self, split: FileSplit, count: int, begun: int, line: LiveLine) -> Iterator[Record]:
        """`count` rows of a file split, after `begun` of others."""
        read: Spread[Numbered] = Spread(count)
        rows: Spread[Record] = Spread(count)
        spread = SpreadSplit(**vars(split), spread=read, begin=lambda index: line.show(begun + index))
        for record in self._records(spread):
            rows.add(record)
        self.complete = self.complete and read.complete and rows.complete
        yield from rows.items()

    def find(self, origin: str, count: int) -> list[Record]:
        """What the first record becomes whose origin is, or ends with, `origin`; empty where there is no such record.

        Of a document that makes more rows than `count` it is so many, spread over it.
        """
        for split in self.splits:
            found: Spread[Record] = Spread(count)
            for record in self._records(MatchingSplit(**vars(split), end=origin)):
                found.add(record)
            if found.seen:
                return found.items()
        return []

    def _records(self, split: FileSplit) -> Iterator[Record]:
        folder = str(image_folder(self.source, split))
        task = SplitTask(0, split, self.source, folder, self.processor_dir, self.max_length)
        return (record for table in task.tables() for record in table.to_pylist())
