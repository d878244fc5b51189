"""A student that is prepared for training."""

from pathlib import Path

import pytest
import torch
from families import FAMILIES, PACKABLE, PLACEHOLDER, QWEN2, shake
from tiny import VOCABULARY
from tinyrun import config
from transformers import FastVlmConfig, FastVlmForConditionalGeneration, GenerationConfig, OPTConfig

from lingu_ray.distill.generate import generating
from lingu_ray.distill.inputs import ModelInputs
from lingu_ray.distill.student import Student
from lingu_ray.errors import UserError
from lingu_ray.runtime.rehearsal import rehearse_packing
from lingu_ray.runtime.training.prepare import prepare

FEATURES = 16  # of an image of 32 pixels
TOWER = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "hidden_size": 16, "depths": [1, 1]}


def fast_vlm() -> Student:
    """A FastVLM with a small convolutional tower, which has batch norms as its own has."""
    torch.manual_seed(0)
    text = QWEN2.to_dict() | {"vocab_size": VOCABULARY + 1}
    model = FastVlmForConditionalGeneration(
        FastVlmConfig(text_config=text, vision_config=dict(TOWER), image_token_index=PLACEHOLDER)
    )
    return Student(shake(model))


def images(pixels_I3HW: torch.Tensor) -> ModelInputs:
    """A row for each image, and some text behind it."""
    rows = len(pixels_I3HW)
    ids_BT = torch.tensor([[PLACEHOLDER] * FEATURES + [5, 6, 7]] * rows)
    sample_BT = torch.arange(rows)[:, None].expand_as(ids_BT)
    return ModelInputs(
        ids_BT,
        sample_BT,
        torch.zeros_like(ids_BT, dtype=torch.bool),
        ids_BT == PLACEHOLDER,
        {"pixel_values": pixels_I3HW},
    )


def test_an_image_has_the_same_features_in_every_micro_batch() -> None:
    """Of a tower with batch norm: its statistics are those of its files, in training, after a validation and after
    answers, whoever has set the model to training, so what it sees in an image follows from that image alone."""
    student = fast_vlm()
    before = {name: buffer.clone() for name, buffer in student.model.named_buffers()}
    pixels_I3HW = torch.randn(3, 3, 32, 32)
    prepare(student, config(Path(), Path()).train, torch.device("cpu"), seed=0)
    for mode in (True, False, True):
        student.model.train(mode)
        with generating(student.model, GenerationConfig()):
            assert not student.model.training
        assert student.model.training is student.decoder.training is mode
        together, _ = student.hidden_states(images(pixels_I3HW))
        for image, alone_TD in zip(pixels_I3HW, together, strict=True):
            torch.testing.assert_close(student.hidden_states(images(image[None]))[0][0], alone_TD, rtol=1e-3, atol=1e-4)
    for name, buffer in student.model.named_buffers():
        assert torch.equal(buffer, before[name]), name


@pytest.mark.parametrize("name", PACKABLE)
def test_decoders_whose_packed_samples_are_apart_are_packed(name: str) -> None:
    """Those of the families that pass the suite of packing."""
    rehearse_packing(FAMILIES[name].decoder)


def test_a_decoder_whose_packed_samples_see_each_other_is_not_packed() -> None:
    """OPT's class makes its masks without the positions, as Falcon's did before Transformers 5.24."""
    config = OPTConfig(hidden_size=64, word_embed_proj_dim=64, num_attention_heads=4, ffn_dim=2**20)
    with pytest.raises(UserError, match=r"train.packing: in Transformers' OPTDecoder packed samples see each other"):
        rehearse_packing(config)
