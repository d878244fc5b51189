"""Pretrained vision towers of new VLMs: SigLIP and DINOv2 in Idefics3's tower, CLIP in LLaVA's.

SigLIP is Idefics3's tower as it is, and CLIP is LLaVA's: for pictures of the tower's own size their features are the
same up to rounding. DINOv2 becomes Idefics3's tower with its layer scales multiplied into the layers before them, which
is exact, and without its class token, which Idefics3 has no place for: patches then attend to each other alone.

Shape suffixes: P positions, S patches a side, D width.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionConfig, Idefics3VisionConfig, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    PILImageResampling,
)
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionEmbeddings

from lingu_ray.errors import UserError

VisionTowerConfig = Idefics3VisionConfig | CLIPVisionConfig
"""Idefics3's tower, of a VLM of that class, or CLIP's, of a LLaVA."""
States = dict[str, Tensor]


@dataclass(frozen=True)
class VisionParts:
    """What a new VLM has beside its decoder.

    `pixel_shuffle`: side of the square of patches that become one image token; 1 in a LLaVA. `images`: how its image
    processor shall differ from that of its class (mean, deviation, resampling).
    """

    tower: VisionTowerConfig
    pixel_shuffle: int
    images: dict[str, Any] = field(default_factory=dict)

    @property
    def side(self) -> int:
        """Patches a side of the square input."""
        return cast(int, self.tower.image_size) // cast(int, self.tower.patch_size)

    @property
    def image_tokens(self) -> int:
        """Tokens of an image."""
        return (self.side // self.pixel_shuffle) ** 2


Family = Literal["siglip", "dinov2", "clip"]
_FAMILIES: dict[str, Family] = {
    "siglip": "siglip",
    "siglip_vision_model": "siglip",
    "dinov2": "dinov2",
    "clip": "clip",
    "clip_vision_model": "clip",
}
_NAFLEX = "its patches come from pictures of any shape: take one of a fixed size, such as siglip2-base-patch16-224"
_REFUSED = {
    "siglip2": _NAFLEX,
    "siglip2_vision_model": _NAFLEX,
    "dinov2_with_registers": "its registers have no place in Idefics3's tower: take the model without, as dinov2-base",
}
# what the published towers were trained with, for a folder that does not say
_MEAN_AND_DEVIATION: dict[Family, tuple[list[float], list[float]]] = {
    "siglip": (IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD),
    "dinov2": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "clip": (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
}
_CARRIED = (
    "do_convert_rgb",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "resample",
)


def vision_config(found: PreTrainedConfig, origin: str) -> PreTrainedConfig:
    """The configuration of the vision model in `found`: itself, or the vision part of a whole SigLIP or CLIP.

    `origin`: setting and path, for messages. Raises UserError where it is none that a new VLM can be made with.
    """
    kind = found.model_type
    if kind in _REFUSED:
        raise UserError(f"{origin}: {kind} cannot be taken: {_REFUSED[kind]}")
    if kind not in _FAMILIES:
        raise UserError(f"{origin}: {kind} is no SigLIP, DINOv2 or CLIP vision model")
    vision = cast(PreTrainedConfig, getattr(found, "vision_config", found))
    if getattr(vision, "use_swiglu_ffn", False):
        raise UserError(f"{origin}: its SwiGLU layers have no place in Idefics3's tower: take dinov2-large or smaller")
    if vision.num_channels != 3:
        raise UserError(f"{origin}: it takes pictures of {vision.num_channels} channels, and pictures here have 3")
    return vision


def vision_parts(
    vision: PreTrainedConfig,
    image_size: int | None,
    pixel_shuffle: int | None,
    preprocessor: dict[str, Any],
    origin: str,
) -> VisionParts:
    """The parts of a new VLM with a pretrained tower.

    Args:
        vision: of `vision_config`.
        image_size: side of the square input in pixels; None: the tower's own.
        pixel_shuffle: side of the square of patches folded into one image token; None: 4, or 1 with CLIP.
        preprocessor: the tower's own preprocessor_config.json; empty where it has none.
        origin: setting and path, for messages.

    Raises:
        UserError: size and pixel shuffle do not fit the tower.
    """
    own, patch_size = _side(vision.image_size, origin), _side(vision.patch_size, origin)
    size = image_size or own
    images = _images(_FAMILIES[vision.model_type], preprocessor)
    if _FAMILIES[vision.model_type] == "clip":
        if pixel_shuffle is not None:
            raise UserError(
                "student.from_teacher.pixel_shuffle: a VLM with a CLIP tower is a LLaVA, which has none: leave it out"
            )
        _check_size(size, own, patch_size, lambda side: True, "it must be a whole number")
        # without the dtype of its files, in which Transformers would make it within a VLM of float32
        settings = {**vision.to_dict(), "image_size": size, "dtype": None}
        return VisionParts(CLIPVisionConfig.from_dict(settings), 1, images)
    shuffle = pixel_shuffle or 4
    _check_size(
        size,
        own,
        patch_size,
        lambda side: side % shuffle == 0 and has_own_positions(side),
        f"it must be a multiple of pixel_shuffle {shuffle} for which Idefics3 finds all positions",
    )
    _check_not_empty(images, origin)
    return VisionParts(_idefics3(vision, size, patch_size), shuffle, images)


def _images(family: Family, preprocessor: dict[str, Any]) -> dict[str, Any]:
    """How pictures become pixels: as the tower's own files say, and as its family does it where they are silent."""
    mean, deviation = _MEAN_AND_DEVIATION[family]
    images = {"resample": PILImageResampling.BICUBIC, "image_mean": mean, "image_std": deviation}
    return images | {name: preprocessor[name] for name in _CARRIED if preprocessor.get(name) is not None}


def _side(size: Any, origin: str) -> int:
    """The side of a square, which configurations write as a number or twice."""
    sides = set(size) if isinstance(size, Iterable) else {size}
    if len(sides) != 1:
        raise UserError(f"{origin}: its pictures or patches are no squares ({' × '.join(map(str, size))} pixels)")
    return cast(int, sides.pop())


def _check_size(size: int, own: int, patch_size: int, fits: Callable[[int], bool], rule: str) -> None:
    """Refuse a size whose patches do not fit, and name the next ones that do.

    `fits`: whether so many patches a side do; `rule`: which do. At its own size the tower may leave a border.
    """
    side = size // patch_size
    if side and fits(side) and (size == own or size % patch_size == 0):
        return
    below = next(([n] for n in range(side, 0, -1) if fits(n)), [])
    above = next(n for n in itertools.count(side + 1) if fits(n))
    sizes = " or ".join(f"image_size={n * patch_size}" for n in (*below, above))
    raise UserError(
        f"student.from_teacher: image_size {size} is {size / patch_size:g} patches of {patch_size} pixels a side, and "
        f"{rule}: give {sizes}"
    )


def has_own_positions(side: int) -> bool:
    """Whether Idefics3, in float32, gives every patch of a square its own position.

    It finds them by fractions of the side, which rounding moves to a neighbor for some sides (19, 25, 29, 31, 38, …).
    """
    embeddings = Idefics3VisionEmbeddings(Idefics3VisionConfig(hidden_size=1, image_size=side, patch_size=1))
    own_P = torch.arange(side * side)
    with torch.no_grad():
        for parameter in embeddings.patch_embedding.parameters():
            parameter.zero_()
        embeddings.position_embedding.weight.copy_(own_P[:, None])
        found_1P1 = embeddings(torch.zeros(1, 3, side, side), torch.ones(1, side, side, dtype=torch.bool))
    return torch.equal(found_1P1[0, :, 0].long(), own_P)


def _check_not_empty(images: dict[str, Any], origin: str) -> None:
    """Idefics3 takes a picture that is 0 everywhere for padding: no picture of one color may become that."""
    mean = images["image_mean"] if images.get("do_normalize", True) else 0.0
    scale = images.get("rescale_factor", 1 / 255) if images.get("do_rescale", True) else 1.0
    levels = [value / scale for value in (mean if isinstance(mean, Iterable) else [mean])]
    if all(abs(level - round(level)) < 1e-3 and 0 <= level <= 255 for level in levels):
        color = ", ".join(str(round(level)) for level in levels)
        raise UserError(
            f"{origin}: by its preprocessor_config.json a picture of one color ({color}) becomes 0 everywhere, which "
            "Idefics3 takes for no picture: take another tower"
        )


def _idefics3(vision: PreTrainedConfig, image_size: int, patch_size: int) -> Idefics3VisionConfig:
    dinov2 = _FAMILIES[vision.model_type] == "dinov2"
    return Idefics3VisionConfig(
        hidden_size=vision.hidden_size,
        intermediate_size=int(vision.hidden_size * vision.mlp_ratio) if dinov2 else vision.intermediate_size,
        num_hidden_layers=vision.num_hidden_layers,
        num_attention_heads=vision.num_attention_heads,
        image_size=image_size,
        patch_size=patch_size,
        hidden_act=vision.hidden_act,
        layer_norm_eps=vision.layer_norm_eps,
        attention_dropout=vision.attention_probs_dropout_prob if dinov2 else vision.attention_dropout,
        initializer_range=getattr(vision, "initializer_range", 0.02),
    )


def tower_states(model: PreTrainedModel, parts: VisionParts) -> States:
    """The weights of a pretrained vision model, or of one with its text model, by the names of the new VLM's tower.

    The position table is resized where the new one has another size. The model is not changed.
    """
    vision = cast(PreTrainedModel, model.vision_model) if hasattr(model.config, "vision_config") else model
    family = _FAMILIES[vision.config.model_type]
    if family == "dinov2":
        states = _of_dinov2(vision)
    else:
        states = {name: tensor for name, tensor in vision.state_dict().items() if not name.startswith("head.")}
    name = "embeddings.position_embedding.weight"
    class_tokens = 1 if family == "clip" else 0
    positions_PD = states[name]
    resized_PD = resized(positions_PD[class_tokens:], parts.side)
    return states | {name: torch.cat((positions_PD[:class_tokens], resized_PD))}


def resized(positions_PD: Tensor, side: int) -> Tensor:
    """A square's position table as one of `side` × `side` patches, bicubic without antialiasing: as DINOv2 does it."""
    own = round(len(positions_PD) ** 0.5)
    if own == side:
        return positions_PD
    table_1DSS = positions_PD.T.reshape(1, -1, own, own)
    new_1DSS = F.interpolate(table_1DSS, size=(side, side), mode="bicubic", align_corners=False)
    return new_1DSS.flatten(2)[0].T.contiguous()


# names in published checkpoints of DINOv2, whatever this version of Transformers calls its modules
_RENAMED = {
    r"^embeddings\.patch_embeddings\.projection\.": "embeddings.patch_embedding.",
    r"^layernorm\.": "post_layernorm.",
    r"^encoder\.layer\.": "encoder.layers.",
    r"\.norm([12])\.": r".layer_norm\1.",
    r"\.attention\.attention\.query\.": ".self_attn.q_proj.",
    r"\.attention\.attention\.key\.": ".self_attn.k_proj.",
    r"\.attention\.attention\.value\.": ".self_attn.v_proj.",
    r"\.attention\.output\.dense\.": ".self_attn.out_proj.",
}
_SCALED = {"layer_scale1.lambda1": "self_attn.out_proj", "layer_scale2.lambda1": "mlp.fc2"}
"""A layer scale, and the linear layer whose output it multiplies."""


def _of_dinov2(model: PreTrainedModel) -> States:
    """DINOv2's weights without class and mask token, the layer scales folded into the layers before them."""
    states = dict(revert_weight_conversion(model, model.state_dict()))
    positions_1PD = states.pop("embeddings.position_embeddings")
    for unused in ("embeddings.cls_token", "embeddings.mask_token"):
        states.pop(unused, None)
    scales = {name: states.pop(name) for name in list(states) if name.endswith(".lambda1")}
    states = {_renamed(name): tensor for name, tensor in states.items()}
    states["embeddings.position_embedding.weight"] = positions_1PD[0, 1:]
    for name, scale_D in scales.items():
        layer, part = re.fullmatch(r"encoder\.layer\.(\d+)\.(.*)", name).groups()  # pyrefly: ignore [missing-attribute]
        linear = f"encoder.layers.{layer}.{_SCALED[part]}"
        states[f"{linear}.weight"] = scale_D[:, None] * states[f"{linear}.weight"]
        states[f"{linear}.bias"] = scale_D * states[f"{linear}.bias"]
    if not model.config.qkv_bias:
        for layer in range(model.config.num_hidden_layers):
            for letter in "qkv":
                linear = f"encoder.layers.{layer}.self_attn.{letter}_proj"
                states[f"{linear}.bias"] = torch.zeros_like(states[f"{linear}.weight"][:, 0])
    return states


def _renamed(name: str) -> str:
    for old, new in _RENAMED.items():
        name = re.sub(old, new, name)
    return name
