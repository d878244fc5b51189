"""Every VLM of Transformers, small and random: distilled exactly from an LM that fits it, or refused with a reason."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import ADDED, BOS, END, FAMILIES, PINPOINTS, PLACEHOLDER, START, TOWER, VIDEO, give_weights, shake
from test_all_decoders import LARGEST, SIZES
from tiny import VOCABULARY
from torch import Generator, Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from lingu_ray.corpus.batch import MicroBatch, collate
from lingu_ray.corpus.encode import Sample
from lingu_ray.distill import Distiller, UserError
from lingu_ray.distill.head import output_head
from lingu_ray.distill.pair import _family, check_kind, compare_decoders

OF_TEXT: dict[str, Any] = SIZES | {
    "vocab_size": VOCABULARY + len(ADDED),
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
OF_TOWER: dict[str, Any] = TOWER | {
    "hidden_size": 64,  # Qwen2-VL's is that of its tokens
    "num_key_value_heads": 2,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 2,
    "projection_dim": 64,
    "out_hidden_size": 64,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1],
    "window_size": 16,
    "fullatt_block_indexes": [1],
    "vision_use_head": False,
}
OF_VLM: dict[str, Any] = {
    **dict.fromkeys(("image_token_id", "image_token_index"), PLACEHOLDER),
    **dict.fromkeys(("video_token_id", "video_token_index"), VIDEO),
    **dict.fromkeys(("boi_token_index", "image_start_token_id", "vision_start_token_id"), START),
    **dict.fromkeys(("eoi_token_index", "image_end_token_id", "vision_end_token_id"), END),
    "audio_token_id": PLACEHOLDER + len(ADDED),
    "pad_token_id": 2,
    "scale_factor": 2,
    "downsample_factor": 2,
    "mm_tokens_per_image": 4,
    "image_grid_pinpoints": PINPOINTS,
    "vision_feature_layers": [-1, -2],
    "projector_patch_to_query_dict": {16: 4},
    "projection_dim": 64,
    "hidden_size": 64,
    "tie_word_embeddings": False,
}
UNDECLARED = {"vision_start_token_id", "vision_end_token_id", "audio_token_id"}  # of Omni, which reads them
LAYOUTS = list({family.media.__qualname__: family.media for family in FAMILIES.values()}.values())
EXACT = {
    *("aria", "aya_vision", "cohere2_vision", "cosmos3_omni", "deepseek_vl", "exaone4_5", "gemma3", "glm4v", "glm46v"),
    *("glm4v_moe", "got_ocr2", "hyperclovax_vision_v2", "idefics2", "idefics3", "internvl", "lighton_ocr", "llava"),
    *("llava_next", "llava_onevision", "mistral3", "ovis2", "paligemma", "qianfan_ocr", "qwen2_vl", "qwen2_5_vl"),
    *("qwen3_vl", "qwen3_vl_moe", "smolvlm", "vipllava"),
}


class AskedOtherwise(Exception):
    """The model takes images in a layout of its own."""


def sized(config: PreTrainedConfig, sizes: dict[str, Any]) -> dict[str, Any]:
    """The sizes that the class of a configuration knows."""
    known = {*type(config).__dataclass_fields__, *type(config).attribute_map}
    return {name: size for name, size in sizes.items() if name in known}


def small(kind: type[PreTrainedConfig]) -> PreTrainedConfig:
    """A small configuration of a VLM, with the kind of text model and tower that it has by default."""
    default = kind()
    parts: dict[str, Any] = {name: OF_VLM[name] for name in UNDECLARED}
    for name in kind.sub_configs:
        part = getattr(default, name, None)
        if isinstance(part, PreTrainedConfig):
            text = "text" in name
            parts[name] = sized(part, OF_TEXT if text else OF_TOWER) | {"model_type": part.model_type}
            if "mrope_section" in getattr(part, "ignore_keys_at_rope_validation", ()):
                parts[name]["rope_parameters"] = _sections(part)
    return kind(**parts | sized(default, OF_VLM))


def _sections(text: PreTrainedConfig) -> dict[str, Any]:
    """M-RoPE for heads of 16."""
    share = (text.rope_parameters or {}).get("partial_rotary_factor", 1.0)
    sections = [round(8 * share) - 2 * round(2 * share), round(2 * share), round(2 * share)]
    return {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": share, "mrope_section": sections}


def build(maker: Any, config: PreTrainedConfig) -> PreTrainedModel:
    """A small random model. Raises ValueError where its other sizes have other names."""
    with torch.device("meta"):
        if maker(config).num_parameters() > LARGEST:
            raise ValueError("too large")
    torch.manual_seed(0)
    return shake(maker(config)).float().eval()


def fitting(text: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Configurations of all LMs that fit a student's decoder, with its settings where they have them."""
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING:
        if _family(kind) != _family(text) or kind.sub_configs:
            continue
        known = sized(kind(), text.to_dict() | OF_TEXT)
        settings = {name: getattr(text, name) for name in known if hasattr(text, name)}
        rope = getattr(text, "rope_parameters", None) or {}
        rope = {name: value for name, value in rope.items() if "mrope" not in name}
        settings |= {"vocab_size": VOCABULARY, "rope_parameters": rope, "head_dim": getattr(text, "head_dim", 16)}
        # of Qwen3-MoE, and of PaliGemma's prompts
        lm = kind(**settings | {"norm_topk_prob": True, "use_bidirectional_attention": None})
        try:
            compare_decoders(text, lm)
        except UserError:
            continue
        yield lm


def samples(vlm: Any) -> list[Sample]:
    """Samples with one image, none and two, as `get_image_features` takes them."""
    generator = Generator().manual_seed(0)

    def words(length: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    def one(position: int, images: int) -> Sample:
        vision, runs = seen(vlm, images) if images else ({}, [])
        ids = [BOS, *words(4)]
        for count in runs:
            ids += [START, *[PLACEHOLDER] * count, END, *words(2)]
        ids_T = torch.tensor(ids + words(9 + 4 * position))
        answer_T = torch.arange(len(ids_T)) >= len(ids_T) - 5
        return Sample("s", position, ids_T, answer_T, ids_T == PLACEHOLDER, vision)

    return [one(position, images) for position, images in enumerate((1, 0, 2))]


@torch.no_grad()
def seen(vlm: Any, images: int) -> tuple[dict[str, Tensor], list[int]]:
    """Images in the first layout that the model takes, and the tokens of each of them, or of its tiles."""
    named = inspect.signature(vlm.model.get_image_features).parameters
    for layout in LAYOUTS:
        _, vision = layout(Generator().manual_seed(1), images, True)
        if vision.keys() <= named.keys():
            try:
                found = vlm.model.get_image_features(**vision).pooler_output
            except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError):
                continue
            return vision, [one.shape[:-1].numel() for one in (found if found[0].ndim > 1 else [found])]
    raise AskedOtherwise


def own_hidden(vlm: Any, batch: MicroBatch) -> Tensor:
    """Final hidden states by the class's own masks and positions, with what its processor returns."""
    types_BT = batch.visual_BT.long()
    if vlm.config.model_type == "paligemma":
        types_BT = (batch.supervised_BT.cumsum(1) > 0).long()
    named = inspect.signature(vlm.model.forward).parameters
    given = {name: types_BT for name in ("token_type_ids", "mm_token_type_ids") if name in named}
    real_BT = (batch.sample_BT >= 0).long()
    return vlm.model(
        input_ids=batch.input_ids_BT, attention_mask=real_BT, **given, **batch.vision, use_cache=False, return_dict=True
    ).last_hidden_state


def check_exact(distiller: Distiller, vlm: Any, lm: PreTrainedModel) -> None:
    """Equal decoders: KD is 0 after images and text, CE is that of the class's own pass, and the decoder learns."""
    give_weights(vlm, lm)
    batch = collate(samples(vlm), pad_id=2)
    labels_BT = torch.where(batch.supervised_BT, batch.input_ids_BT, -100)
    real_BT = (batch.sample_BT >= 0).long()
    tensors = {"input_ids": batch.input_ids_BT, "attention_mask": real_BT, "labels": labels_BT, **batch.vision}
    output = distiller(tensors)
    output.loss.backward()
    with torch.no_grad():
        hidden_ND = own_hidden(vlm, batch)[:, :-1][labels_BT[:, 1:] >= 0]
        ce = F.cross_entropy(output_head(vlm).logits(hidden_ND), labels_BT[labels_BT >= 0])
    assert output.kd < 1e-6, output.kd
    torch.testing.assert_close(output.ce, ce, rtol=1e-4, atol=1e-4)
    unreached = {name for name, parameter in vlm.get_decoder().named_parameters() if parameter.grad is None}
    assert not {name for name in unreached if "experts" not in name}, unreached


@pytest.mark.slow
def test_every_vlm_is_distilled_exactly_or_refused() -> None:
    """From an LM of its decoder's class, and from each other that counts as its family."""
    outcomes, exact, tried = Counter[str](), set(), set()
    for kind, model in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.items():
        try:
            config = small(kind)
            text = config.get_text_config(decoder=True)
            check_kind(text, "student")
            vlm = build(model._from_config, config)
        except UserError:
            outcomes["refused"] += 1
            continue
        except Exception:  # each kind has conditions of its own, and what cannot be built is counted
            outcomes["not built"] += 1
            continue
        for number, lm in enumerate(fitting(text)):
            if number and (type(text), type(lm)) in tried:
                continue
            tried.add((type(text), type(lm)))
            teacher = build(AutoModelForCausalLM.from_config, lm)
            try:
                distiller = Distiller(vlm, teacher)
            except UserError as error:
                outcomes["refused"] += 1
                assert str(error)
                continue
            try:
                check_exact(distiller, vlm, teacher)
            except AskedOtherwise:
                outcomes["asked otherwise"] += 1
            else:
                exact.add(kind.model_type)
    assert exact >= EXACT, EXACT - exact
    assert outcomes["asked otherwise"] < 5 and outcomes["not built"] < 30 and outcomes["refused"] > 20, outcomes
