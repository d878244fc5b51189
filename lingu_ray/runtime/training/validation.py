"""Validation loss by source, and sample answers of the student."""

from __future__ import annotations

import torch

from lingu_ray.config import Config
from lingu_ray.corpus.batch import make_micro_batches
from lingu_ray.corpus.encode import Encoder
from lingu_ray.corpus.row import Row
from lingu_ray.distill.generate import Prompt, generate_answers
from lingu_ray.distill.student import Student
from lingu_ray.passes import tokens_of_a_pass
from lingu_ray.runtime.run_folder.records import Record
from lingu_ray.runtime.training.distributed import all_sum
from lingu_ray.runtime.training.step import MicroBatches

_ANSWER_TOKENS = 48


class Validation:
    """The held-out rows, encoded once; each worker takes its share."""

    def __init__(
        self, config: Config, rows: dict[str, list[Row]], encoder: Encoder, device: torch.device, rank: int, world: int
    ):
        self.device = device
        settings = config.train
        self.batches = {
            source: make_micro_batches(
                [encoder.encode(row) for row in held_out[rank::world]],
                settings.tokens_per_micro_batch,
                encoder.pad_id,
                settings.packing,
                tokens_of_a_pass(device),
            )
            for source, held_out in rows.items()
            if held_out
        }

    def run(self, micro_batches: MicroBatches) -> Record:
        """`{"validation": {source: {ce, tokens}}, "validation_ce"}`: nats a token, and the mean over sources."""
        micro_batches.student.model.eval()
        result = {}
        for source, batches in self.batches.items():
            ce = sum(micro_batches.cross_entropy(batch) for batch in batches)
            tokens = sum(int(batch.supervised_BT.sum()) for batch in batches)
            ce, tokens = all_sum([ce, tokens], self.device)
            result[source] = {"ce": ce / tokens, "tokens": int(tokens)}
        micro_batches.student.model.train()
        mean = sum(entry["ce"] for entry in result.values()) / len(result) if result else None
        return {"validation": result, "validation_ce": mean}


def sample_rows(rows: dict[str, list[Row]], count: int) -> list[Row]:
    """`count` held-out rows, from the sources in turn."""
    turns = [row for same_turn in zip(*_even(list(rows.values())), strict=True) for row in same_turn if row is not None]
    return turns[:count]


def answer_samples(student: Student, encoder: Encoder, rows: list[Row]) -> list[Record]:
    """Greedy answers to the last question of each row: `{source, position, question, expected, answer}`."""
    records = []
    for row in rows:
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


def _even(lists: list[list[Row]]) -> list[list[Row | None]]:
    longest = max((len(rows) for rows in lists), default=0)
    return [[*rows, *[None] * (longest - len(rows))] for rows in lists]
