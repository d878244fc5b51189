"""A tiny random pair for each family of students: its text-only teacher, the VLM built on it, and samples for both.

The student's decoder and head hold the teacher's weights; its vocabulary has the rows of `ADDED` on top. Samples look
as the family's own processor writes them: placeholders between the family's border tokens, images of differing sizes
where the family allows them, vision tensors by the names that the forward pass takes. Everything is seeded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from tiny import VOCABULARY
from torch import Generator, Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
)

from lingu_ray.runtime.models.masks import images_keep_their_places

# What the student's vocabulary has more than the teacher's; each family writes the first as its placeholder.
ADDED = ("placeholder", "start", "end", "line break", "video")
PLACEHOLDER, START, END, BREAK, VIDEO = range(VOCABULARY, VOCABULARY + len(ADDED))
BOS, EOS, PAD = 1, 0, 2
WINDOW = 6  # of the families whose attention slides: much shorter than a sample

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "tie_word_embeddings": True,
    "initializer_range": 0.2,  # far from uniform predictions, so that comparisons mean something
}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "initializer_range": 0.2,
}
QWEN_TOWER: dict[str, Any] = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "initializer_range": 0.2,
}
LISTENER: dict[str, Any] = {"num_mel_bins": 8, "max_source_positions": 16, "initializer_range": 0.2}
PINPOINTS = [[16, 32], [32, 16], [32, 32]]

Media = tuple[list[list[int]], dict[str, Tensor]]
"""The ids that stand for each image (or audio) of a sample, border tokens included, and their tensors together."""
MakeConfig = Callable[[dict[str, Any]], PreTrainedConfig]
"""From the configuration of the text model, as a dictionary, to the student's."""


@dataclass
class Prompt:
    """One sample: `input_ids_T` int64, `visual_T` bool (placeholders that features replace), what the tower takes."""

    input_ids_T: Tensor
    visual_T: Tensor
    vision: dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """How one family is built. `media(generator, count, odd)` makes images; `odd` swaps its two sizes of image."""

    name: str
    decoder: PreTrainedConfig
    model: type[PreTrainedModel]
    config: MakeConfig
    media: Callable[[Generator, int, bool], Media]
    modality: Literal["image", "audio"] = "image"
    attention: str = "sdpa"
    media_first: bool = False

    def teacher(self, seed: int = 0) -> PreTrainedModel:
        """The causal LM of the text configuration, in float32 and eval mode."""
        torch.manual_seed(seed)
        config = deepcopy(self.decoder)  # a model writes its dtype into it
        model = AutoModelForCausalLM.from_config(config, attn_implementation=self.attention)
        return shake(model).eval()

    def student(self, teacher: PreTrainedModel, seed: int = 1) -> PreTrainedModel:
        """The VLM whose decoder and head hold the teacher's weights, the rows of `ADDED` beneath; float32, eval."""
        torch.manual_seed(seed)
        text = teacher.config.to_dict() | {"vocab_size": VOCABULARY + len(ADDED)}
        model = shake(self.model(self.config(text)))
        model.set_attn_implementation(self.attention)
        give_weights(model, teacher)
        return model.eval()

    def prompt(self, seed: int, images: int = 1, before: int = 5, after: int = 12) -> Prompt:
        """`before` text tokens, `images` images (or audios) with two text tokens between them, `after` text tokens.

        Where images come first (PaliGemma): the images, BOS, `after` text tokens.
        """
        generator = torch.Generator().manual_seed(seed)
        written, vision = self.media(generator, images, seed % 2 == 1)
        pieces = [piece for ids in written for piece in (ids, _words(generator, 2))][:-1]
        if self.media_first:
            pieces = [*written, [BOS]]
        else:
            pieces.insert(0, _words(generator, before))
        ids_T = torch.tensor([i for piece in pieces for i in piece] + _words(generator, after))
        return Prompt(ids_T, ids_T == PLACEHOLDER, vision)

    def text(self, seed: int, length: int = 24) -> Prompt:
        """A sample of `length` text tokens."""
        ids_T = torch.tensor(_words(torch.Generator().manual_seed(seed), length))
        return Prompt(ids_T, torch.zeros_like(ids_T, dtype=torch.bool), {})


def give_weights(vlm: PreTrainedModel, lm: PreTrainedModel) -> None:
    """Copy the weights of an LM's decoder and head into those of a VLM, which may have more ids."""
    with torch.no_grad():
        for target, source in (
            (vlm.get_decoder(), lm.get_decoder()),
            (vlm.get_output_embeddings(), lm.get_output_embeddings()),
        ):
            parameters = dict(source.named_parameters())
            for name, parameter in target.named_parameters():
                parameter[: len(parameters[name])] = parameters[name]


def shake(model: PreTrainedModel) -> PreTrainedModel:
    """Add noise to all that initialization leaves constant: norms, biases and the projections that start at zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            if (parameter == parameter.flatten()[0]).all():
                parameter += 0.2 * torch.randn_like(parameter)
    return model


def _words(generator: Generator, length: int) -> list[int]:
    return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()


def _noise(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def _kinds(count: int, odd: bool) -> list[int]:
    """0 or 1 for each image: which of the family's two sizes it has."""
    return [(index + odd) % 2 for index in range(count)]


# Images as each processor writes them.


def _nested(generator: Generator, count: int, odd: bool) -> Media:
    """Idefics3: `[1, images, 3, H, W]`; the second size is padded on the right, which the mask says."""
    mask = torch.ones(1, count, 16, 16, dtype=torch.long)
    mask[0, [kind == 1 for kind in _kinds(count, odd)], :, 8:] = 0
    pixels = _noise(generator, 1, count, 3, 16, 16) * mask[:, :, None]
    return [[START, *[PLACEHOLDER] * 4, START]] * count, {"pixel_values": pixels, "pixel_attention_mask": mask}


def _square(tokens: int, start: list[int], end: list[int]) -> Callable[[Generator, int, bool], Media]:
    """LLaVA 1.5, Gemma 3 and PaliGemma: every image is one square `[images, 3, H, W]`."""

    def media(generator: Generator, count: int, odd: bool) -> Media:
        return [start + [PLACEHOLDER] * tokens + end] * count, {"pixel_values": _noise(generator, count, 3, 16, 16)}

    return media


def _patched(generator: Generator, count: int, odd: bool) -> Media:
    """LLaVA-NeXT: a whole view and 2 or 4 patches `[images, patches, 3, H, W]`, padded to as many for all.

    A view or patch has 4 × 4 features; each row of features of the joined patches gets a newline.
    """
    kinds = _kinds(count, odd)
    pixels = _noise(generator, count, 3 if 1 not in kinds else 5, 3, 16, 16)
    pixels[[kind == 0 for kind in kinds], 3:] = 0
    tokens = (16 + 4 * 8 + 4, 16 + 8 * 8 + 8)
    sizes = torch.tensor([((16, 32), (32, 32))[kind] for kind in kinds])
    return [[PLACEHOLDER] * tokens[kind] for kind in kinds], {"pixel_values": pixels, "image_sizes": sizes}


def _patched_if_alone(generator: Generator, count: int, odd: bool) -> Media:
    """LLaVA-OneVision: one image is cut as in LLaVA-NeXT; of several, each is one view with one newline."""
    written, vision = _patched(generator, count, odd)
    if count > 1:
        written = [[PLACEHOLDER] * 17] * count
        vision["pixel_values"] = vision["pixel_values"][:, :1]
    return written, vision | {"batch_num_images": torch.tensor([count])}


def _grid(generator: Generator, count: int, odd: bool) -> Media:
    """Qwen-VL: flattened patches of all images `[patches, C × time × P × P]`, four of them a token, and their grids."""
    kinds = _kinds(count, odd)
    grids = torch.tensor([((1, 4, 4), (1, 4, 6))[kind] for kind in kinds])
    pixels = _noise(generator, int(grids.prod(1).sum()), 3 * 2 * 4 * 4)
    written = [[START, *[PLACEHOLDER] * (4, 6)[kind], END] for kind in kinds]
    return written, {"pixel_values": pixels, "image_grid_thw": grids}


def _tiled(generator: Generator, count: int, odd: bool) -> Media:
    """InternVL: one tile, or two and a thumbnail, `[tiles, 3, H, W]`; four tokens a tile."""
    tiles = [(1, 3)[kind] for kind in _kinds(count, odd)]
    pixels = _noise(generator, sum(tiles), 3, 16, 16)
    return [[START, *[PLACEHOLDER] * 4 * number, END] for number in tiles], {"pixel_values": pixels}


def _rows(generator: Generator, count: int, odd: bool) -> Media:
    """Mistral 3: images of their own sizes, padded to the largest; each row of tokens ends in a break or the end."""
    kinds = _kinds(count, odd)
    sizes = torch.tensor([((8, 16), (16, 24))[kind] for kind in kinds])
    height, width = sizes.amax(0).tolist()
    pixels = _noise(generator, count, 3, height, width)
    for image, (h, w) in zip(pixels, sizes.tolist(), strict=True):
        image[:, h:] = 0
        image[:, :, w:] = 0
    written = [([PLACEHOLDER] * (w // 8) + [BREAK]) * (h // 8) for h, w in sizes.tolist()]
    return [[*ids[:-1], END] for ids in written], {"pixel_values": pixels, "image_sizes": sizes}


def _masked_frames(generator: Generator, count: int, odd: bool) -> Media:
    """Qwen2-Audio: `[audios, mel, frames]` padded to 32 frames with a mask; four frames a token."""
    frames = [(32, 20)[kind] for kind in _kinds(count, odd)]
    mask = (torch.arange(32) < torch.tensor(frames)[:, None]).long()
    features = _noise(generator, count, 8, 32) * mask[:, None]
    written = [[START, *[PLACEHOLDER] * (number // 4), END] for number in frames]
    return written, {"input_features": features, "feature_attention_mask": mask}


def _chunks(generator: Generator, count: int, odd: bool) -> Media:
    """Voxtral: one or two chunks of 32 frames an audio, `[chunks, mel, 32]`; four tokens a chunk."""
    chunks = [(1, 2)[kind] for kind in _kinds(count, odd)]
    written = [[START, *[PLACEHOLDER] * 4 * number] for number in chunks]
    return written, {"input_features": _noise(generator, sum(chunks), 8, 32)}


# Configurations of the students, from their text configuration.


def _sections(text: dict[str, Any], model_type: str, sections: list[int]) -> dict[str, Any]:
    """The text configuration with M-RoPE: how many frequencies turn with time, height and width."""
    return text | {"model_type": model_type, "rope_parameters": text["rope_parameters"] | {"mrope_section": sections}}


def _with_grid(config: type[PreTrainedConfig], model_type: str, sections: list[int], **tower: Any) -> MakeConfig:
    """A configuration of Qwen-VL: M-RoPE in the decoder, images as grids."""

    def build(text: dict[str, Any]) -> PreTrainedConfig:
        return config(
            text_config=_sections(text, model_type, sections),
            vision_config=QWEN_TOWER | tower,
            tie_word_embeddings=text["tie_word_embeddings"],
            image_token_id=PLACEHOLDER,
            video_token_id=VIDEO,
            vision_start_token_id=START,
            vision_end_token_id=END,
        )

    return build


def _with_tower(config: type[PreTrainedConfig], tower: dict[str, Any], **settings: Any) -> MakeConfig:
    """A configuration of text and vision, the tower and a few settings given."""

    def build(text: dict[str, Any]) -> PreTrainedConfig:
        tie = text["tie_word_embeddings"]
        return config(text_config=text, vision_config=dict(tower), tie_word_embeddings=tie, **settings)

    return build


def _with_listener(config: type[PreTrainedConfig], tower: dict[str, Any]) -> MakeConfig:
    """A configuration of text and audio."""

    def build(text: dict[str, Any]) -> PreTrainedConfig:
        tie = text["tie_word_embeddings"]
        return config(text_config=text, audio_config=dict(tower), audio_token_id=PLACEHOLDER, tie_word_embeddings=tie)

    return build


LLAMA = LlamaConfig(**TEXT, head_dim=32)
LLAMA_UNTIED = LlamaConfig(**TEXT | {"tie_word_embeddings": False}, head_dim=32)
MISTRAL = MistralConfig(**TEXT | {"tie_word_embeddings": False}, head_dim=32, sliding_window=None)
MISTRAL_SLIDING = MistralConfig(**TEXT | {"tie_word_embeddings": False}, head_dim=32, sliding_window=WINDOW)
QWEN2 = Qwen2Config(**TEXT)
QWEN2_UNTIED = Qwen2Config(**TEXT | {"tie_word_embeddings": False})
QWEN3 = Qwen3Config(**TEXT, head_dim=32)
QWEN3_MOE = Qwen3MoeConfig(
    **TEXT, head_dim=32, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True
)
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": WINDOW, "layer_types": SLIDING}
GEMMA3 = Gemma3TextConfig(**TEXT, **GEMMA)
# PaliGemma's prompts see each other within the window, which always holds them
GEMMA2 = Gemma2Config(
    **TEXT, **(GEMMA | {"sliding_window": 64}), attn_logit_softcapping=2.0, final_logit_softcapping=3.0
)

CLIP = TOWER | {"model_type": "clip_vision_model", "projection_dim": 32}
SIGLIP = TOWER | {"model_type": "siglip_vision_model", "vision_use_head": False}
INTERN_VIT = TOWER | {"image_size": [16, 16], "patch_size": [4, 4]}
PIXTRAL = TOWER | {"model_type": "pixtral", "head_dim": 16}
QWEN2_EYE = {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
QWEN_EYE = {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64}
QWEN2_5_EYE = QWEN_EYE | {"window_size": 16, "fullatt_block_indexes": [1]}
QWEN3_EYE = QWEN_EYE | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
QWEN2_EAR = LISTENER | {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
VOXTRAL_EAR = LISTENER | {
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}

_IMAGE = {"image_token_id": PLACEHOLDER}
_SHUFFLED = {**_IMAGE, "scale_factor": 2, "pad_token_id": PAD}
_ANYRES = {"image_token_index": PLACEHOLDER, "image_grid_pinpoints": PINPOINTS}
_OV = {**_ANYRES, "video_token_index": VIDEO}
_G3 = {"image_token_index": PLACEHOLDER, "boi_token_index": START, "eoi_token_index": END, "mm_tokens_per_image": 4}
_PG = {"image_token_index": PLACEHOLDER, "projection_dim": 64, "hidden_size": 64}

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "idefics3",
            LLAMA,
            Idefics3ForConditionalGeneration,
            _with_tower(Idefics3Config, TOWER, **_SHUFFLED),
            _nested,
        ),
        Family(
            "smolvlm", LLAMA, SmolVLMForConditionalGeneration, _with_tower(SmolVLMConfig, TOWER, **_SHUFFLED), _nested
        ),
        Family(
            "llava",
            LLAMA_UNTIED,
            LlavaForConditionalGeneration,
            _with_tower(LlavaConfig, CLIP, image_token_index=PLACEHOLDER),
            _square(16, [], []),
        ),
        Family(
            "llava_next",
            MISTRAL,
            LlavaNextForConditionalGeneration,
            _with_tower(LlavaNextConfig, CLIP, **_ANYRES),
            _patched,
        ),
        Family(
            "llava_onevision",
            QWEN2,
            LlavaOnevisionForConditionalGeneration,
            _with_tower(LlavaOnevisionConfig, SIGLIP, **_OV),
            _patched_if_alone,
        ),
        Family(
            "qwen2_vl",
            QWEN2,
            Qwen2VLForConditionalGeneration,
            _with_grid(Qwen2VLConfig, "qwen2_vl_text", [2, 3, 3], **QWEN2_EYE),
            _grid,
        ),
        Family(
            "qwen2_5_vl",
            QWEN2,
            Qwen2_5_VLForConditionalGeneration,
            _with_grid(Qwen2_5_VLConfig, "qwen2_5_vl_text", [2, 3, 3], **QWEN2_5_EYE),
            _grid,
        ),
        Family(
            "qwen3_vl",
            QWEN3,
            Qwen3VLForConditionalGeneration,
            _with_grid(Qwen3VLConfig, "qwen3_vl_text", [6, 5, 5], **QWEN3_EYE),
            _grid,
        ),
        Family(
            "qwen3_vl_moe",
            QWEN3_MOE,
            Qwen3VLMoeForConditionalGeneration,
            _with_grid(Qwen3VLMoeConfig, "qwen3_vl_moe_text", [6, 5, 5], **QWEN3_EYE),
            _grid,
        ),
        Family(
            "internvl3",
            QWEN2,
            InternVLForConditionalGeneration,
            _with_tower(InternVLConfig, INTERN_VIT, **_IMAGE),
            _tiled,
        ),
        Family(
            "gemma3",
            GEMMA3,
            Gemma3ForConditionalGeneration,
            _with_tower(Gemma3Config, SIGLIP, **_G3),
            _square(4, [START], [END]),
        ),
        Family(
            "paligemma2",
            GEMMA2,
            PaliGemmaForConditionalGeneration,
            _with_tower(PaliGemmaConfig, SIGLIP, **_PG),
            _square(16, [], []),
            attention="eager",  # the soft cap of attention is applied there alone
            media_first=True,
        ),
        Family(
            "mistral3",
            MISTRAL_SLIDING,
            Mistral3ForConditionalGeneration,
            _with_tower(Mistral3Config, PIXTRAL, image_token_index=PLACEHOLDER),
            _rows,
        ),
        Family(
            "qwen2_audio",
            QWEN2_UNTIED,
            Qwen2AudioForConditionalGeneration,
            _with_listener(Qwen2AudioConfig, QWEN2_EAR),
            _masked_frames,
            modality="audio",
        ),
        Family(
            "voxtral",
            LLAMA_UNTIED,
            VoxtralForConditionalGeneration,
            _with_listener(VoxtralConfig, VOXTRAL_EAR),
            _chunks,
            modality="audio",
        ),
    )
}
# PaliGemma's prompts see all of their row, and with some Transformers images of Gemma 3 see the wrong places.
PACKABLE = sorted(FAMILIES.keys() - {"paligemma2"} - (set() if images_keep_their_places() else {"gemma3"}))
QUICK = ("idefics3", "qwen2_vl", "gemma3")  # full causal attention, M-RoPE, sliding windows and images that see ahead


def each(names: Iterable[str] = FAMILIES) -> list[Any]:
    """The families by name, as parameters of a test; `make test-fast` leaves out all but those of `QUICK`."""
    return [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in names]
