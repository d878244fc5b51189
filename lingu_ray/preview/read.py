"""Reading some rows of a source, or all: the tasks of the corpus's build make rows and rejects of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from lingu_ray.config import Config, SourceConfig
from lingu_ray.corpus.encode import Encoder, Sample
from lingu_ray.corpus.normalize import SplitTask, load_encoder
from lingu_ray.corpus.row import Row
from lingu_ray.corpus.splits import FileSplit, evenly, image_folder, split_source
from lingu_ray.corpus.store import ROW_SCHEMA
from lingu_ray.errors import UserError
from lingu_ray.live import LiveLine
from lingu_ray.preview.roles import Judge
from lingu_ray.preview.sources import Example, Length, Reject, SourcePreview
from lingu_ray.preview.spread import MatchingSplit, Spread, SpreadSplit
from lingu_ray.preview.tokens import segments, visible

SPLITS = 8  # file splits of a source that a part of its rows comes from
LEFT_OUT = 300  # tokens beyond `max_length` that are shown

Record = dict[str, Any]
"""A row or a reject, with the columns of `normalize.NORMALIZED`."""


class SourceReader:
    """Reads sources for a preview, in this process; equal data give equal previews.

    Args:
        config: the run.
        processor_dir: folder of the student's saved processor.
        teacher_vocabulary: ids that the teacher has; 0 where nothing is distilled.
        rows: how many rows of a source to read, spread over it; None: all.
        examples: how many of them to show.
    """

    def __init__(
        self, config: Config, processor_dir: str, teacher_vocabulary: int, rows: int | None, examples: int
    ) -> None:
        self.config, self.processor_dir, self.teacher_vocabulary = config, processor_dir, teacher_vocabulary
        self.rows, self.examples = rows, examples
        self.encoder = load_encoder(processor_dir, config.corpus.max_length)

    def read(self, source: SourceConfig, wanted: list[Record] | None = None) -> SourcePreview:
        """Read the source; `wanted` are rows and rejects (from `find`) to show in place of examples.

        Raises:
            UserError: its data are not found or cannot be read, or a row that passes the checks cannot be encoded.
        """
        lengths: list[Length] = []
        rejects: list[Reject] = []
        shown: Spread[Record] = Spread(self.examples)
        splits = split_source(source)
        parts = self._parts(splits)
        complete = len(parts) == len(splits)
        with LiveLine(f"reading {source.name}", len(parts), "file split", keep=False) as line:
            for done, (split, count) in enumerate(parts):
                rows = _PartOfSplit(self._task(source, split), count)
                for record in rows:
                    line.show(done, f"{len(lengths)} rows")
                    if record["reason"]:
                        rejects.append(_reject(record))
                    else:
                        lengths.append(self._length(record, self._encode(record)))
                        shown.add(record)
                complete = complete and rows.complete
        judge = Judge(self.config, source, self.teacher_vocabulary)
        chosen = shown.items() if wanted is None else wanted
        return SourcePreview(
            judge,
            complete,
            lengths,
            rejects,
            examples=[self._example(record, judge) for record in chosen if not record["reason"]],
            wanted=[_reject(record) for record in chosen if record["reason"]],
        )

    def find(self, source: SourceConfig, origin: str) -> list[Record]:
        """What the first record becomes whose origin is, or ends with, `origin`: rows or a reject; empty: no such one.

        Of a document that makes many rows it is some of them, spread over it.
        """
        for split in split_source(source):
            matching = MatchingSplit(**vars(split), end=origin)
            found: Spread[Record] = Spread(max(self.examples, 1))
            for record in _records(self._task(source, matching)):
                found.add(record)
            if found.seen:
                return found.items()
        return []

    def _parts(self, splits: list[FileSplit]) -> list[tuple[FileSplit, int | None]]:
        """The file splits to read, and how many rows of each; None: all."""
        if self.rows is None:
            return [(split, None) for split in splits]
        chosen = evenly(splits, min(SPLITS, max(self.rows, 2)))
        shares = [(i + 1) * self.rows // len(chosen) - i * self.rows // len(chosen) for i in range(len(chosen))]
        return list(zip(chosen, shares, strict=True))

    def _task(self, source: SourceConfig, split: FileSplit) -> SplitTask:
        folder = str(image_folder(source, split))
        return SplitTask(0, split, source, folder, self.processor_dir, self.config.corpus.max_length)

    def _encode(self, record: Record, max_length: int | None = None) -> Sample:
        encoder = self.encoder if max_length is None else Encoder(self.encoder.processor, max_length)
        try:
            return encoder.encode(_row(record))
        except Exception as error:
            raise UserError(f"source {record['source']}: {record['origin']} cannot be encoded: {error}") from error

    def _length(self, record: Record, sample: Sample) -> Length:
        return Length(
            whole=self.encoder.length(_row(record)) if record["truncated"] else len(sample),
            tokens=len(sample),
            supervised=int(sample.supervised_T.sum()),
            images=len(record["images"]),
            truncated=record["truncated"],
        )

    def _example(self, record: Record, judge: Judge) -> Example:
        sample = self._encode(record)
        length = self._length(record, sample)
        whole = self._encode(record, length.whole) if length.truncated else sample
        left_out = whole.input_ids_T[len(sample) :][:LEFT_OUT].tolist()
        shown = segments(sample, left_out, judge, self.encoder.tokenizer)
        return Example(visible(record["origin"]), length, record["images"], shown)


class _PartOfSplit:
    """Iterates over `count` rows and rejects of a file split, spread over it, or over all.

    `complete`, at the end: whether these are all.
    """

    def __init__(self, task: SplitTask, count: int | None) -> None:
        self.task, self.count = task, count
        self.complete = True

    def __iter__(self) -> Iterator[Record]:
        if self.count is None:
            yield from _records(self.task)
            return
        read: Spread[Any] = Spread(self.count)
        rows: Spread[Record] = Spread(self.count)
        for record in _records(replace(self.task, split=SpreadSplit(**vars(self.task.split), spread=read))):
            rows.add(record)
        self.complete = read.complete and rows.complete
        yield from rows.items()


def _records(task: SplitTask) -> Iterator[Record]:
    return (record for table in task.tables() for record in table.to_pylist())


def _row(record: Record) -> Row:
    return Row(position=-1, **{name: record[name] for name in ROW_SCHEMA.names if name != "position"})


def _reject(record: Record) -> Reject:
    return Reject(record["reason"], visible(record["origin"]), visible(record["excerpt"]))
