"""Pretrained vision towers in a new VLM compute what they computed before; what cannot be taken is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from families import shake
from PIL import Image
from tiny import VOCABULARY, tiny_teacher, tiny_tokenizer
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoProcessor,
    CLIPConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Idefics3ForConditionalGeneration,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Siglip2VisionConfig,
    SiglipConfig,
    SiglipVisionConfig,
    ViTConfig,
)

from lingu_ray.distill.new_student import build_processor, build_student
from lingu_ray.distill.towers import VisionParts, has_own_positions, resized, tower_states, vision_config, vision_parts
from lingu_ray.errors import UserError

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": 0.2,
}
MLP = {"intermediate_size": 48}
SIGLIP = SiglipVisionConfig(**SIZES, **MLP)
CLIP = CLIPVisionConfig(**SIZES, **MLP, projection_dim=32, hidden_act="quick_gelu")
DINOV2 = Dinov2Config(**SIZES, mlp_ratio=2, layerscale_value=0.5)
TEXT = {"vocab_size": 9, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


def pretrained(config: PreTrainedConfig) -> PreTrainedModel:
    """A model whose every weight differs from where training begins."""
    torch.manual_seed(0)
    return shake(AutoModel.from_config(config)).eval()


def new_vlm(model: PreTrainedModel, image_size: int | None = None, shuffle: int | None = None) -> PreTrainedModel:
    """A VLM with this tower, made as a run makes it."""
    parts = parts_of(model.config, image_size, shuffle)
    processor = build_processor(tiny_tokenizer(), parts)
    return build_student(tiny_teacher(), processor, parts, 0, tower_states(model, parts)).eval()


def parts_of(
    config: PreTrainedConfig, image_size: int | None = None, shuffle: int | None = None, **preprocessor: Any
) -> VisionParts:
    return vision_parts(vision_config(config, "tower"), image_size, shuffle, preprocessor, "tower")


def pixels(side: int = 32) -> Tensor:
    """Two pictures `[2, 3, side, side]` in float64."""
    return torch.randn(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def features(vlm: PreTrainedModel, pixels_NCHW: Tensor) -> Tensor:
    """What the projector of the VLM is given, in float64: `[N, patches, width]`."""
    seen = []
    projector = vlm.model.connector if hasattr(vlm.model, "connector") else vlm.model.multi_modal_projector
    with torch.no_grad(), projector.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        nested = pixels_NCHW[None] if isinstance(vlm, Idefics3ForConditionalGeneration) else pixels_NCHW
        nn.Module.to(vlm, torch.float64).model.get_image_features(nested)
    return seen[0]


@pytest.mark.parametrize("config", [SIGLIP, SiglipConfig(text_config=TEXT, vision_config=SIGLIP.to_dict())])
def test_siglip_is_the_same_in_idefics3(config: PreTrainedConfig) -> None:
    """Vision model or whole SigLIP: the same features in float64, at the tower's own size."""
    model = pretrained(config)
    vlm = new_vlm(model)
    vision = nn.Module.to(getattr(model, "vision_model", model), torch.float64)
    with torch.no_grad():
        wanted = vision(pixel_values=pixels()).last_hidden_state
    torch.testing.assert_close(features(vlm, pixels()), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("config", [CLIP, CLIPConfig(text_config=TEXT, vision_config=CLIP.to_dict())])
def test_clip_is_the_same_in_llava(config: PreTrainedConfig) -> None:
    """The last layer but one without the class token, as in LLaVA 1.5; at another size by CLIP's interpolation."""
    model = pretrained(config)
    vision = getattr(model, "vision_model", model)
    for side in (32, 48):
        vlm = new_vlm(model, side)
        assert isinstance(vlm, LlavaForConditionalGeneration)
        with torch.no_grad():
            wanted = nn.Module.to(vision, torch.float64)(
                pixel_values=pixels(side), interpolate_pos_encoding=True, output_hidden_states=True
            ).hidden_states[-2][:, 1:]
        nn.Module.to(model, torch.float32)
        torch.testing.assert_close(features(vlm, pixels(side)), wanted, rtol=0, atol=1e-6 if side == 48 else 1e-10)


def without_class_token(model: Dinov2Model, pixels_NCHW: Tensor) -> Tensor:
    """DINOv2 on patches alone, by its own modules: embeddings, layers with their scales, final norm."""
    patches_NPD = model.embeddings.patch_embeddings(pixels_NCHW)
    hidden_NPD = patches_NPD + model.embeddings.position_embeddings[:, 1:]
    for layer in model.encoder.layer:
        hidden_NPD = layer(hidden_NPD)
    return model.layernorm(hidden_NPD)


@pytest.mark.parametrize("changed", [{}, {"qkv_bias": False}, {"use_mask_token": False, "hidden_act": "gelu_new"}])
def test_dinov2_is_the_same_in_idefics3_but_for_its_class_token(changed: dict[str, Any]) -> None:
    """Layer scales, names and biases: equal in float64 to DINOv2 that is given no class token."""
    model = pretrained(Dinov2Config(**DINOV2.to_dict() | changed))
    vlm = new_vlm(model)
    nn.Module.to(model, torch.float64)
    # a layer scale times a weight is rounded: in float64 here
    nn.Module.to(vlm, torch.float64).model.vision_model.load_state_dict(tower_states(model, parts_of(model.config)))
    found = features(vlm, pixels())
    with torch.no_grad():
        wanted = without_class_token(model, pixels())
        whole = model(pixel_values=pixels()).last_hidden_state[:, 1:]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    assert not torch.allclose(found, whole, rtol=0, atol=1e-4)  # what is left out shows: the test can fail


@pytest.mark.parametrize("config", [SIGLIP, DINOV2, CLIP])
def test_a_tower_in_half_precision_makes_a_vlm_in_float32(config: PreTrainedConfig) -> None:
    """Files in bfloat16 say so in their config.json, from which no part of the new VLM is made."""
    parts = parts_of(type(config)(**config.to_dict() | {"dtype": "bfloat16"}))
    vlm = build_student(tiny_teacher(), build_processor(tiny_tokenizer(), parts), parts, 0)
    assert {parameter.dtype for parameter in vlm.parameters()} == {torch.float32}


def test_a_position_table_is_resized_as_dinov2_does_it() -> None:
    """To another number of patches by what Transformers' DINOv2 gives pictures of that size."""
    model = pretrained(DINOV2)
    for side in (2, 6):
        with torch.no_grad():
            wanted_1PD = model.embeddings.interpolate_pos_encoding(torch.zeros(1, side**2 + 1, 32), 8 * side, 8 * side)
        torch.testing.assert_close(resized(model.embeddings.position_embeddings[0, 1:], side), wanted_1PD[0, 1:])
        assert new_vlm(model, 8 * side, 2).model.vision_model.embeddings.position_embedding.weight.equal(
            resized(model.embeddings.position_embeddings[0, 1:], side)
        )


def test_sides_that_idefics3_rounds_are_known() -> None:
    """It loses positions for some sides, by its own code; a power of two keeps them in bfloat16, too."""
    assert [side for side in range(1, 40) if not has_own_positions(side)] == [19, 25, 29, 31, 38]


@pytest.mark.parametrize(
    ("config", "preprocessor", "mean", "resample"),
    [
        (SIGLIP, {}, [0.5, 0.5, 0.5], Image.Resampling.BICUBIC),
        (DINOV2, {}, [0.485, 0.456, 0.406], Image.Resampling.BICUBIC),
        (CLIP, {}, [0.48145466, 0.4578275, 0.40821073], Image.Resampling.BICUBIC),
        (SIGLIP, {"image_mean": [0.1, 0.2, 0.3], "resample": 2}, [0.1, 0.2, 0.3], Image.Resampling.BILINEAR),
    ],
)
def test_pictures_are_processed_as_the_tower_wants_them(
    config: PreTrainedConfig, preprocessor: dict[str, Any], mean: list[float], resample: int, tmp_path: Any
) -> None:
    """Mean, deviation and resampling of its own files, else of its family, and they are in the saved processor."""
    parts = parts_of(config, None, None, **preprocessor)
    build_processor(tiny_tokenizer(), parts).save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert list(processor.image_processor.image_mean) == mean and processor.image_processor.resample == resample
    picture = Image.effect_noise((90, 60), 80).convert("RGB")
    encoded = processor(text=["<image>"], images=[[picture]], return_tensors="pt")
    found = encoded["pixel_values"].flatten(0, -4)[0]
    square = np.asarray(picture.resize((32, 32), resample), dtype=np.float32) / 255
    deviation = np.asarray(processor.image_processor.image_std, dtype=np.float32)
    wanted = torch.from_numpy((square - np.asarray(mean, dtype=np.float32)) / deviation).permute(2, 0, 1)
    assert (found - wanted).abs().mean() < 0.2  # Idefics3's class resizes twice
    tokens = encoded["input_ids"][0].tolist().count(processor.image_token_id)
    assert tokens == parts.image_tokens == (1 if parts.pixel_shuffle == 4 else 16)


REFUSED = {
    "no vision model": (ViTConfig(), {}, "vit is no SigLIP, DINOv2 or CLIP vision model"),
    "NaFlex": (Siglip2VisionConfig(), {}, "siglip2_vision_model cannot be taken: its patches"),
    "registers": (Dinov2WithRegistersConfig(), {}, "dinov2_with_registers cannot be taken: its registers"),
    "SwiGLU": (Dinov2Config(use_swiglu_ffn=True), {}, "its SwiGLU layers have no place .* take dinov2-large"),
    "gray": (SiglipVisionConfig(num_channels=1), {}, "takes pictures of 1 channels"),
    "no square": (Dinov2Config(image_size=[224, 112]), {}, r"no squares \(224 × 112 pixels\)"),
    "black is zero": (SIGLIP, {"image_mean": [0, 0, 0]}, r"a picture of one color \(0, 0, 0\) becomes 0 everywhere"),
    "not normalized": (SIGLIP, {"do_normalize": False}, r"a picture of one color \(0\)"),
    "size": (SIGLIP, {"image_size": 60}, "image_size 60 is 7.5 patches of 8 .* give image_size=32 or image"),
    "shuffle": (
        Dinov2Config(image_size=518),
        {},
        r"518 is 37 patches .* multiple of pixel_shuffle 4 .* give image_size=504 or image_size=616$",
    ),
    "positions": (
        SIGLIP,
        {"image_size": 152, "pixel_shuffle": 1},
        "152 is 19 .* give image_size=144 or image_size=160",
    ),
    "shuffle of CLIP": (CLIP, {"pixel_shuffle": 2}, "a VLM with a CLIP tower is a LLaVA, which has none"),
    "size of CLIP": (CLIP, {"image_size": 30}, "must be a whole number: give image_size=24 or image_size=32$"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_taken_is_refused_by_name(case: str) -> None:
    """Kinds and sizes that a new VLM has no place for: what it is, and what to give in its place."""
    config, given, message = REFUSED[case]
    sizes = {name: given.get(name) for name in ("image_size", "pixel_shuffle")}
    preprocessor = {name: value for name, value in given.items() if name not in sizes}
    with pytest.raises(UserError, match=message):
        parts_of(config, sizes["image_size"], sizes["pixel_shuffle"], **preprocessor)


def test_a_teacher_whose_answers_would_not_end_is_refused() -> None:
    """Without ChatML's tokens a turn ends with EOS, and there is none."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))
    with pytest.raises(UserError, match="has no eos_token"):
        build_processor(tokenizer, parts_of(SIGLIP, None, 2))


def with_holes(left_out: int, ids: int) -> PreTrainedTokenizerFast:
    """A tokenizer of one token an id, but that one id has none."""
    vocabulary = {chr(ord("a") + i): i for i in range(ids) if i != left_out}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="b")


@pytest.mark.parametrize("config", [SIGLIP, CLIP], ids=["idefics3", "llava"])
def test_a_teacher_whose_image_tokens_would_be_others_is_refused(config: PreTrainedConfig) -> None:
    """In a vocabulary that leaves ids out, `tokenizers` gives a new token the id of one that is there."""
    tokenizer = with_holes(left_out=2, ids=8)
    with pytest.raises(UserError, match=r"<\w+> and h would have one id, .* no token of id 2: add one"):
        build_processor(tokenizer, parts_of(config, None, None if config is CLIP else 2))


def test_every_id_has_a_row_where_ids_are_left_out() -> None:
    """New tokens come after the last id then, which is more than the tokens are."""
    tokenizer = with_holes(left_out=2, ids=VOCABULARY)
    tokenizer.add_special_tokens({"pad_token": chr(ord("a") + VOCABULARY - 1)})
    parts = parts_of(SIGLIP, None, 2)
    vlm = build_student(tiny_teacher(), processor := build_processor(tokenizer, parts), parts, 0)
    assert len(vlm.get_input_embeddings().weight) == max(processor.tokenizer.get_vocab().values()) + 1


def test_a_tower_may_leave_a_border_at_its_own_size() -> None:
    """384 pixels in patches of 14 are 27 patches and a border, which SigLIP ignores, too."""
    config = SiglipVisionConfig(**SIZES | {"image_size": 30}, **MLP)
    parts = parts_of(config, None, 3)
    assert parts.side == 3 and parts.image_tokens == 1
