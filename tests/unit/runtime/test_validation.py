"""Validation: nats a token of each source, and a mean in which each source counts the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tinyrun import config

from lingu_ray.corpus.encode import Encoder
from lingu_ray.corpus.row import Row
from lingu_ray.distill.student import Student
from lingu_ray.runtime.models.load import load_processor, load_student
from lingu_ray.runtime.training.step import MicroBatches
from lingu_ray.runtime.training.validation import Validation

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
    found: Any = Validation(settings, rows, encoder, device, rank=0, world=1).run(micro_batches)

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


def _said(answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "Say"}, {"role": "assistant", "content": answer}]
