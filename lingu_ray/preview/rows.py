"""Rows and rejects of a source, or a part of them spread over it, made by the tasks of the corpus's build."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

from lingu_ray.config import Config, SourceConfig
from lingu_ray.corpus.image_folder import image_folder
from lingu_ray.corpus.normalize import SplitTask
from lingu_ray.corpus.splits import FileSplit, check_source, evenly, split_source
from lingu_ray.live import LiveLine
from lingu_ray.preview.spread import MatchingSplit, Numbered, Spread, SpreadSplit

SPLITS = 8  # file splits of a source that a part of its rows comes from

Record = dict[str, Any]
"""A row, or a reject with its `reason`: the columns of `normalize.NORMALIZED`."""


class SourceRows:
    """The rows and rejects of a source; equal data give equal ones.

    Args:
        config: the run.
        source: which.
        processor_dir: folder of the student's saved processor.

    Raises:
        UserError: its data are not found, it has no records or, while iterating, they cannot be read.
    """

    def __init__(self, config: Config, source: SourceConfig, processor_dir: str) -> None:
        self.config, self.source, self.processor_dir = config, source, processor_dir
        self.splits = split_source(source)
        check_source(source, self.splits)
        self.complete = True
        self.size = 0.0

    def read(self, count: int | None) -> Iterator[Record]:
        """At most `count` of them, spread over the file splits and in each of these; None: all.

        Shows a live line. At the end `complete` says whether these were all, and `size` how many rows and rejects the
        source has: counted, or estimated from the file splits that were read.
        """
        if count is None:
            yield from self._all()
            return
        parts = evenly(self.splits, min(SPLITS, count)) if count > 1 else self.splits[:1]
        self.complete = len(parts) == len(self.splits)
        with LiveLine(f"reading {self.source.name}", count, "row", keep=False) as line:
            for index, split in enumerate(parts):
                begun = index * count // len(parts)
                rows = yield from self._part(split, (index + 1) * count // len(parts) - begun, begun, line)
                self.size += rows * len(self.splits) / len(parts)

    def _all(self) -> Iterator[Record]:
        with LiveLine(f"reading {self.source.name}", len(self.splits), "file split", keep=False) as line:
            for done, split in enumerate(self.splits):
                for record in self._records(split):
                    self.size += 1
                    line.show(done, f"{self.size:.0f} rows")
                    yield record

    def _part(self, split: FileSplit, count: int, begun: int, line: LiveLine) -> Generator[Record, None, float]:
        """Yield `count` rows of a file split, after `begun` of others; return how many it has, about."""
        read: Spread[Numbered] = Spread(count)
        rows: Spread[Record] = Spread(count)
        spread = SpreadSplit(**vars(split), spread=read, begin=lambda index: line.show(begun + index))
        for record in self._records(spread):
            rows.add(record)
        self.complete = self.complete and read.complete and rows.complete
        yield from rows.items()
        return read.seen * rows.seen / max(len(read.items()), 1)

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
        folder, trusted = image_folder(self.source, split), self.config.student.trust_remote_code
        task = SplitTask(0, split, self.source, folder, self.processor_dir, self.config.corpus.max_length, trusted)
        return (record for table in task.tables() for record in table.to_pylist())
