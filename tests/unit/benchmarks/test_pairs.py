"""Random pairs have the shapes of the models that they are named after."""

import pytest
import torch
from transformers import PreTrainedModel

from benchmarks.pairs import PairName, named_pair

MILLIONS: dict[PairName, tuple[float, float]] = {
    "SmolVLM-256M": (256.5, 134.5),
    "SmolVLM-500M": (507.5, 361.8),
    "nanoVLM-460M": (459.9, 361.8),
    "Qwen2-VL-2B": (2209.0, 1543.7),
}
"""Weights of each model as published, and of the language model that its decoder came from."""


@pytest.mark.parametrize("name", MILLIONS)
def test_sizes_are_those_of_the_models(name: PairName) -> None:
    """Weights of student and teacher, tied heads counted once, and equal decoders, without making a weight."""
    pair = named_pair(name)
    with torch.device("meta"):
        student, teacher = pair.make_student(), pair.make_teacher()
    assert (millions(student), millions(teacher)) == pytest.approx(MILLIONS[name], rel=0.01)
    assert layers(student) == layers(teacher)


def millions(model: PreTrainedModel) -> float:
    """Weights in millions."""
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def layers(model: PreTrainedModel) -> list[torch.Size]:
    """Shapes of the decoder's layers."""
    return [parameter.shape for parameter in model.get_decoder().layers.parameters()]
