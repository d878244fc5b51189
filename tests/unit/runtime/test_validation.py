"""Validation: nats a token of each source, and a mean in which each source counts the same."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import picture
from tinyrun import config

from lingu_ray.corpus.batch import make_micro_batches
from lingu_ray.corpus.encode import Encoder, Sample
from lingu_ray.corpus.encoding_pool import encoding_pool
from lingu_ray.corpus.row import Row
from lingu_ray.distill.student import Student
from lingu_ray.errors import UserError
from lingu_ray.passes import tokens_of_a_pass
from lingu_ray.runtime.models.load import load_processor, load_student
from lingu_ray.runtime.training.step import MicroBatches
from lingu_ray.runtime.training.validation import MICRO_BATCHES_AHEAD, Validation, answer_samples

ANSWERS = {
    "text": ["A tale that is told at length, with one word after another.", "Short.", "And one more of these."],
    "pictures": ["No."],
}


@torch.no_grad()
def test_sources_count_the_same_however_long_their_answers_are(data):
    """By source the CE of Transformers' own logits over its tokens; `validation_ce` is the plain mean of sources."""
    settings = config(data, data)
    encoder = Encoder(load_processor(settings.student), 160)
    rows = {
        source: [Row(source, i, _said(answer), [], False) for i, answer in enumerate(answers)]
        for source, answers in ANSWERS.items()
    }
    device = torch.device("cpu")
    student = Student(load_student(settings.student))
    micro_batches = MicroBatches(settings, student, None, device)
    with encoding_pool(2) as pool:
        found: Any = Validation(settings, rows, encoder, device, rank=0, world=1).run(micro_batches, pool)

    for source, held_out in rows.items():
        samples = [encoder.encode(row) for row in held_out]
        total, tokens = 0.0, 0
        for sample in samples:
            logits_TV = student.model(input_ids=sample.input_ids_T[None]).logits[0]
            ce_T = F.cross_entropy(logits_TV[:-1], sample.input_ids_T[1:], reduction="none")
            total += float(ce_T[sample.supervised_T[1:]].sum())
            tokens += int(sample.supervised_T.sum())
        assert found["validation"][source] == {"ce": pytest.approx(total / tokens, rel=1e-5), "tokens": tokens}
    means = [entry["ce"] for entry in found["validation"].values()]
    assert found["validation_ce"] == pytest.approx(sum(means) / 2, rel=1e-6)
    sizes = [entry["tokens"] for entry in found["validation"].values()]
    assert max(sizes) > 3 * min(sizes) and abs(means[0] - means[1]) > 1e-3  # weights by tokens would show


class Watched(Encoder):
    """Counts the rows whose pixels are in memory while another one is encoded, and names the threads."""

    def __init__(self, processor: Any, max_length: int) -> None:
        super().__init__(processor, max_length)
        self.alive, self.most, self.threads = weakref.WeakSet[torch.Tensor](), 0, set[str]()

    def encode(self, row: Row) -> Sample:
        """As ever, and notes."""
        sample = super().encode(row)
        self.alive.add(sample.vision["pixel_values"])
        self.most = max(self.most, len(self.alive))
        self.threads.add(threading.current_thread().name.split("_")[0])
        return sample


class Asked(Encoder):
    """Keeps the questions that are asked."""

    def __init__(self, processor: Any, max_length: int) -> None:
        super().__init__(processor, max_length)
        self.asked: list[str] = []

    def encode_question(self, row: Row) -> Sample:
        """As ever, and notes."""
        sample = super().encode_question(row)
        self.asked.append(self.tokenizer.decode(sample.input_ids_T))
        return sample


def _pictures(count: int) -> list[Row]:
    asked = [_said("Yes. " * (1 + i % 3), f"<image>{'Even? ' * (1 + i % 4)}") for i in range(count)]
    return [Row("pictures", i, messages, [picture(i)], False) for i, messages in enumerate(asked)]


@pytest.mark.parametrize("packing", [False, True])
def test_rows_that_are_encoded_ahead_give_the_same_to_the_bit(data, packing):
    """Each time what the same rows give that are encoded one by one and cut at once, also where turns do not fit."""
    train = {"packing": packing, "tokens_per_micro_batch": 100}
    settings = config(data, data, train=train, corpus={"max_length": 48})
    encoder = Encoder(load_processor(settings.student), 48)
    long = [turn for _ in range(4) for turn in _said("And so it goes on.")]
    texts = [Row("text", i, said, [], False) for i, said in enumerate([*map(_said, ANSWERS["text"]), long])]
    rows, device = {"text": texts, "pictures": _pictures(9)}, torch.device("cpu")
    micro_batches = MicroBatches(settings, Student(load_student(settings.student)), None, device)
    validation = Validation(settings, rows, encoder, device, rank=1, world=2)
    with encoding_pool(3) as pool:
        found: list[Any] = [validation.run(micro_batches, pool) for _ in range(2)]
    micro_batches.student.model.eval()
    for source, held_out in rows.items():
        samples, budget = [encoder.encode(row) for row in held_out[1::2]], settings.train.tokens_per_micro_batch
        batches = make_micro_batches(samples, budget, encoder.pad_id, packing, tokens_of_a_pass(device))
        assert len(batches) > 1 or source == "text"
        tokens = sum(int(batch.supervised_BT.sum()) for batch in batches)
        expected = {"ce": sum(micro_batches.cross_entropy(batch) for batch in batches) / tokens, "tokens": tokens}
        assert [record["validation"][source] for record in found] == [expected, expected]


def test_pixels_of_few_rows_are_in_memory(data):
    """Of many rows those of a few micro-batches, none before the first validation and none after it; encoded by the
    pool's threads.
    """
    settings = config(data, data, train={"tokens_per_micro_batch": 48}, corpus={"max_length": 48})
    encoder = Watched(load_processor(settings.student), 48)
    device = torch.device("cpu")
    micro_batches = MicroBatches(settings, Student(load_student(settings.student)), None, device)
    validation = Validation(settings, {"pictures": _pictures(16)}, encoder, device, rank=0, world=1)
    assert encoder.most == 0
    with encoding_pool(2) as pool:
        validation.run(micro_batches, pool)
    assert encoder.threads == {"encode"}
    assert 0 < encoder.most <= MICRO_BATCHES_AHEAD + 1 and len(encoder.alive) == 0


def test_a_held_out_row_that_fails_is_named(data):
    """An error in a thread of the pool surfaces with the row's source and position."""
    settings, device = config(data, data), torch.device("cpu")
    rows = {"pictures": [Row("pictures", 3, _said("Yes.", "<image>Even?"), [b"broken"], False)]}
    validation = Validation(settings, rows, Encoder(load_processor(settings.student), 48), device, rank=0, world=1)
    micro_batches = MicroBatches(settings, Student(load_student(settings.student)), None, device)
    with (
        encoding_pool(2) as pool,
        pytest.raises(UserError, match=r"held-out row 3 \(source pictures\) cannot be encoded: cannot identify"),
    ):
        validation.run(micro_batches, pool)


TURNS = (("<image>What is this?", "A dog."), ("And this, <image>?", "A bird that sings."), ("Both?", "Two animals."))


@pytest.mark.parametrize(("max_length", "turn"), [(512, 2), (90, 1), (75, 0), (30, 0)])
def test_a_sample_is_the_question_that_was_asked(data, max_length, turn):
    """Of a conversation that is too long, question and expected answer are of the turn that is asked, with the
    pictures up to it; at last the first one is asked, though its answer does not fit.
    """
    settings = config(data, data)
    encoder = Asked(load_processor(settings.student), max_length)
    messages = [message for question, answer in TURNS for message in _said(answer, question)]
    row = Row("pictures", 5, messages, [picture(0), picture(1)], False)
    (record,) = answer_samples(Student(load_student(settings.student)), encoder, [row])
    assert (record["question"], record["expected"]) == TURNS[turn]
    assert encoder.asked[0].endswith(f"{TURNS[turn][0].split('>')[-1]}<end_of_utterance>\nAssistant:")


def _said(answer: str, question: str = "Say") -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
