"""Reading the sources for a preview: their rows, counted and measured, and some of them token by token."""

from __future__ import annotations

from dataclasses import replace

import torch

from lingu_ray.config import Config, SourceConfig
from lingu_ray.corpus.encode import Encoder, Sample
from lingu_ray.corpus.normalize import load_encoder
from lingu_ray.corpus.row import PLACEHOLDER, Row
from lingu_ray.corpus.store import ROW_SCHEMA, row_of
from lingu_ray.errors import UserError
from lingu_ray.preview.roles import Judge
from lingu_ray.preview.rows import Record, SourceRows
from lingu_ray.preview.sources import Example, Length, Reject, SourcePreview
from lingu_ray.preview.spread import Spread
from lingu_ray.preview.tokens import segments, visible


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
        self.encoder = load_encoder(processor_dir, config.corpus.max_length, config.student.trust_remote_code)

    def read(self, source: SourceConfig, wanted: list[Record] | None = None) -> SourcePreview:
        """Read the source; `wanted` are rows and rejects (from `find`) to show in place of examples.

        Raises:
            UserError: its data are not found or cannot be read, or a row that passes the checks cannot be encoded.
        """
        lengths: list[Length] = []
        rejects: list[Reject] = []
        shown: Spread[Record] = Spread(self.examples)
        rows = self._rows(source)
        for record in rows.read(self.rows):
            if record["reason"]:
                rejects.append(_reject(record))
            else:
                lengths.append(self._length(record))
                shown.add(record)
        judge = Judge(self.config, source, self.teacher_vocabulary)
        chosen = shown.items() if wanted is None else wanted
        return SourcePreview(
            judge,
            rows.complete,
            rows.size,
            lengths,
            rejects,
            examples=[self._example(record, judge) for record in chosen if not record["reason"]],
            wanted=[_reject(record) for record in chosen if record["reason"]],
        )

    def find(self, source: SourceConfig, origin: str) -> list[Record]:
        """What the first record becomes whose origin is, or ends with, `origin` (see `SourceRows.find`)."""
        return self._rows(source).find(origin, max(self.examples, 1))

    def _rows(self, source: SourceConfig) -> SourceRows:
        return SourceRows(self.config, source, self.processor_dir)

    def _length(self, record: Record) -> Length:
        """Lengths of a row; its images count by their size, and are not processed where nothing is cut."""
        row, cut = unplaced_row(record), record["truncated"]
        whole = self.encoder.length(row)
        sample = self._encode(record, row if cut else without_images(row))
        tokens = len(sample) if cut else whole
        return Length(whole, tokens, int(sample.supervised_T.sum()), len(row.images), truncated=cut)

    def _example(self, record: Record, judge: Judge) -> Example:
        row, length = unplaced_row(record), self._length(record)
        sample = self._encode(record, row)
        whole = self._encode(record, row, length.whole) if length.truncated else sample
        if not torch.equal(whole.input_ids_T[: len(sample)], sample.input_ids_T):
            whole = sample  # what is left out cannot be told by position
        shown = segments(sample, whole, judge, self.encoder.tokenizer)
        return Example(visible(record["origin"]), length, row.images, shown)

    def _encode(self, record: Record, row: Row, max_length: int | None = None) -> Sample:
        encoder = self.encoder if max_length is None else Encoder(self.encoder.processor, max_length)
        try:
            return encoder.encode(row)
        except Exception as error:
            raise UserError(f"source {row.source}: {record['origin']} cannot be encoded: {error}") from error


def read_rows(config: Config, source: SourceConfig, processor_dir: str, count: int) -> list[Row]:
    """Rows of the source that training would take, `count` records spread over it.

    Raises:
        UserError: its data are not found or cannot be read, or all of the records are rejected.
    """
    rows = SourceRows(config, source, processor_dir)
    found = [unplaced_row(record) for record in rows.read(count) if not record["reason"]]
    if not found:
        raise UserError(f"source {source.name}: all rows that were read are rejected: lingu-ray inspect says why")
    return found


def unplaced_row(record: Record) -> Row:
    """The row of a normalized record, which has no position yet."""
    return row_of({name: record[name] for name in ROW_SCHEMA.names if name in record} | {"position": -1})


def without_images(row: Row) -> Row:
    """The row with a word in place of each image: its answers have the same tokens."""
    messages = [message | {"content": message["content"].replace(PLACEHOLDER, "image")} for message in row.messages]
    return replace(row, messages=messages, images=[])


def _reject(record: Record) -> Reject:
    return Reject(record["reason"], visible(record["origin"]), visible(record["excerpt"]))
