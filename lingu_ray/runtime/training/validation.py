"""Validation loss by source, and sample answers of the student."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice, zip_longest

import torch

from lingu_ray.config import Config
from lingu_ray.corpus.batch import MicroBatch, collate, grouped
from lingu_ray.corpus.encode import Encoder, Sample
from lingu_ray.corpus.encoding_pool import encoded_ahead
from lingu_ray.corpus.row import Row, is_target, placeholders
from lingu_ray.distill.generate import Prompt, generate_answers
from lingu_ray.distill.student import Student
from lingu_ray.errors import UserError
from lingu_ray.passes import tokens_of_a_pass
from lingu_ray.runtime.run_folder.records import Record
from lingu_ray.runtime.training.distributed import all_sum
from lingu_ray.runtime.training.step import MicroBatches

MICRO_BATCHES_AHEAD = 2
_ANSWER_TOKENS = 48


class Validation:
    """The held-out rows, of which each worker takes its share.

    Their pictures are larger than the files that they come from, so they are encoded each time, ahead of need, and none
    is kept. Which rows make a micro-batch is found the first time.
    """

    def __init__(
        self, config: Config, rows: dict[str, list[Row]], encoder: Encoder, device: torch.device, rank: int, world: int
    ):
        self.settings, self.encoder, self.device = config.train, encoder, device
        self.rows = {source: held_out[rank::world] for source, held_out in rows.items() if held_out}
        self._groups: list[list[Row]] = []

    def run(self, micro_batches: MicroBatches, pool: ThreadPoolExecutor) -> Record:
        """`{"validation": {source: {ce, tokens}}, "validation_ce"}`: nats a token, and the mean over sources.

        `pool`: the threads that encode.
        """
        micro_batches.student.model.eval()
        ce, tokens = dict.fromkeys(self.rows, 0.0), dict.fromkeys(self.rows, 0)
        for batch in self._batches(pool):
            source = batch.sources[0]
            ce[source] += micro_batches.cross_entropy(batch)
            tokens[source] += int(batch.supervised_BT.sum())
        micro_batches.student.model.train()
        result = {}
        for source in self.rows:
            total, count = all_sum([ce[source], tokens[source]], self.device)
            result[source] = {"ce": total / count, "tokens": int(count)}
        mean = sum(entry["ce"] for entry in result.values()) / len(result) if result else None
        return {"validation": result, "validation_ce": mean}

    def _batches(self, pool: ThreadPoolExecutor) -> Iterator[MicroBatch]:
        """Micro-batches of one source each, by source."""
        if not self._groups:
            self._groups = [group for rows in self.rows.values() for group in self._grouped(rows, pool)]
        return map(self._collated, encoded_ahead(pool, self._groups, self._encode, MICRO_BATCHES_AHEAD))

    def _collated(self, samples: list[Sample]) -> MicroBatch:
        return collate(samples, self.encoder.pad_id, self.settings.packing)

    def _grouped(self, rows: list[Row], pool: ThreadPoolExecutor) -> list[list[Row]]:
        """The rows of each micro-batch, which their lengths decide."""
        by_position = {row.position: row for row in rows}
        samples = list(pool.map(lambda row: replace(self._encode(row), vision={}), rows))
        budget, packing = self.settings.tokens_per_micro_batch, self.settings.packing
        groups = grouped(samples, budget, packing, tokens_of_a_pass(self.device))
        return [[by_position[sample.position] for sample in group] for group in groups]

    def _encode(self, row: Row) -> Sample:
        try:
            return self.encoder.encode(row)
        except Exception as error:
            raise UserError(f"held-out {row} cannot be encoded: {error}") from error


def sample_rows(rows: dict[str, list[Row]], count: int) -> list[Row]:
    """`count` held-out rows, from the sources in turn."""
    turns = (row for same_turn in zip_longest(*rows.values()) for row in same_turn if row is not None)
    return list(islice(turns, count))


def answer_samples(student: Student, encoder: Encoder, rows: list[Row]) -> list[Record]:
    """Greedy answers to the last question of each row: `{source, position, question, expected, answer}`.

    Of a row that is too long it is the last question whose answer is whole.
    """
    records = []
    for row in (_fitting(row, encoder) for row in rows):
        turn = max(i for i, message in enumerate(row.messages) if message["role"] == "assistant")
        sample = encoder.encode_question(row)
        [answer_T] = generate_answers(
            student.model,
            [Prompt(sample.input_ids_T, sample.visual_T)],
            sample.vision,
            ends=[encoder.end_of_turn_id],
            pad_id=encoder.pad_id,
            max_new_tokens=_ANSWER_TOKENS,
        )
        records.append(
            {
                "source": row.source,
                "position": row.position,
                "question": row.messages[turn - 1]["content"],
                "expected": row.messages[turn]["content"],
                "answer": encoder.tokenizer.decode(answer_T, skip_special_tokens=True).strip(),
            }
        )
    return records


def _fitting(row: Row, encoder: Encoder) -> Row:
    """The row without turns at its end, so that it fits, or that one answer is left, which always begins within."""
    row = encoder.fitted(row)  # of many turns one or two are left to try
    ends = [end for end, message in enumerate(row.messages, start=1) if is_target(message)]
    while len(ends) > 1 and encoder.length(row) > encoder.max_length:
        ends.pop()
        messages = row.messages[: ends[-1]]
        row = replace(row, messages=messages, images=row.images[: placeholders(messages)])
    return row
