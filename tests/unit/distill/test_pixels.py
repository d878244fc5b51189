"""Pixels and their masks in few bytes: under autocast no number of a student changes."""

from dataclasses import replace

import pytest
import torch
from families import each
from test_families import mixed, pair
from tiny import picture, tiny_processor
from torch import Tensor

from lingu_ray.corpus.batch import collate
from lingu_ray.corpus.encode import Encoder, Sample
from lingu_ray.corpus.image_tokens import PIXEL_MASK
from lingu_ray.corpus.row import Row
from lingu_ray.distill.student import Student
from lingu_ray.runtime.training.step import model_inputs

SAY = [{"role": "user", "content": "<image>Even?"}, {"role": "assistant", "content": "It is odd."}]


def lighter(sample: Sample) -> Sample:
    """The sample as a worker encodes it for bf16."""
    vision = {key: value.bool() if key == PIXEL_MASK else value for key, value in sample.vision.items()}
    pixels = {key: value.bfloat16() for key, value in vision.items() if key == "pixel_values"}
    return replace(sample, vision=vision | pixels)


def outcome(student: Student, samples: list[Sample]) -> list[Tensor]:
    """Final hidden states, and the gradients of all of the student's weights."""
    student.model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        hidden_BTD, _ = student.hidden_states(model_inputs(collate(samples, pad_id=2)))
    hidden_BTD.float().square().mean().backward()
    return [hidden_BTD, *(p.grad.clone() for p in student.model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", each())
def test_no_number_changes(name: str) -> None:
    """Towers first round pixels to bf16 themselves, so rounding before gives the same bits, forward and backward."""
    _, student = pair(name)
    samples = mixed(name)
    assert any(sample.vision for sample in samples)
    ours, theirs = (outcome(student, given) for given in ([lighter(s) for s in samples], samples))
    assert len(ours) == len(theirs) > 1
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("pixels", [torch.float32, torch.bfloat16])
def test_what_is_encoded(pixels: torch.dtype) -> None:
    """Pixels of the dtype that is asked for, equal to the processor's up to its rounding; a mask of one byte each."""
    row = Row("s", 0, SAY, [picture(0)], True)
    plain, sample = (Encoder(tiny_processor(), 128, *given).encode(row) for given in ((), (pixels,)))
    assert sample.vision["pixel_values"].dtype == pixels and sample.vision[PIXEL_MASK].dtype == torch.bool
    assert torch.equal(sample.vision["pixel_values"], plain.vision["pixel_values"].to(pixels))
    assert torch.equal(sample.vision[PIXEL_MASK], plain.vision[PIXEL_MASK]) and plain.vision[PIXEL_MASK].all()
