"""Answers of the student's own: they take the place of the last answer, and earlier ones keep what they had."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tinyrun import config

from lingu_ray.corpus.encode import Encoder
from lingu_ray.corpus.row import Row
from lingu_ray.distill.student import Student
from lingu_ray.runtime.models.load import load_processor, load_student
from lingu_ray.runtime.training.on_policy import OnPolicy
from lingu_ray.runtime.training.prepare import between_steps
from lingu_ray.runtime.training.step import MicroBatches


def test_the_last_answer_alone_is_replaced(data):
    """Prompt and earlier answers stay, supervised as before; the sampled one is supervised and marked as such."""
    settings = config(data, data, distill={"on_policy": 1.0, "sampled_tokens": 5})
    encoder = Encoder(load_processor(settings.student), 160)
    turns: list[Any] = ["Hi", "Hello you.", "<image>Odd?", "Yes, it is."]
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    sample = encoder.encode(Row("text", 0, messages, [(data / "0.png").read_bytes()], True))
    [answered] = OnPolicy(settings, Student(load_student(settings.student)), encoder).answer([sample], step=0)
    start = answered.sampled_from
    assert start is not None and sample.supervised_T[start] and not sample.supervised_T[start - 1]
    assert 0 < len(answered) - start <= 5
    for part in ("input_ids_T", "supervised_T", "visual_T"):
        assert torch.equal(getattr(answered, part)[:start], getattr(sample, part)[:start])
    assert sample.supervised_T[:start].any()  # the first answer
    assert answered.supervised_T[start:].all() and not answered.visual_T[start:].any()


def test_answers_are_sampled_in_the_precision_of_training(data):
    """Between steps a run in bf16 generates in bf16, and is back in its own precision afterwards."""
    settings = config(data, data, distill={"on_policy": 1.0, "sampled_tokens": 2}, train={"precision": "bf16"})
    encoder, student = Encoder(load_processor(settings.student), 160), Student(load_student(settings.student))
    messages: list[Any] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello you."}]
    sample = encoder.encode(Row("text", 0, messages, [], True))
    dtypes = []
    student.layers[0].mlp.register_forward_hook(lambda _, __, output: dtypes.append(output.dtype))
    with between_steps(student, MicroBatches(settings, student, None, torch.device("cpu")).autocast()):
        OnPolicy(settings, student, encoder).answer([sample], step=0)
    assert dtypes and set(dtypes) == {torch.bfloat16}
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.slow
def test_a_rows_answer_is_drawn_alike_by_any_number_of_workers(data):
    """By seed, step and row alone: by one worker with all rows, or by three with a third each."""
    settings = config(data, data, distill={"on_policy": 0.7, "sampled_tokens": 8})
    encoder = Encoder(load_processor(settings.student), 160)
    policy = OnPolicy(settings, Student(load_student(settings.student)), encoder)
    messages: list[Any] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello you."}]
    samples = [encoder.encode(Row("text", position, messages, [], True)) for position in range(9)]

    def ids(answered: list[Any]) -> list[list[int]]:
        return [sample.input_ids_T.tolist() for sample in answered]

    torch.manual_seed(1)
    by_one = ids(policy.answer(samples, step=3))
    by_three = [row for rank in range(3) for row in ids(policy.answer(samples[rank * 3 : rank * 3 + 3], step=3))]
    sampled = [row for row, sample in zip(by_one, samples, strict=True) if row != sample.input_ids_T.tolist()]
    assert by_one == by_three and len(sampled) > 3
    assert len({tuple(row) for row in sampled}) == len(sampled)  # equal prompts, each with draws of its own
    assert ids(policy.answer(samples, step=4)) != by_one
