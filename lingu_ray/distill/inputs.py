"""What a student's forward pass takes, derived for its family.

Families take more than ids and pixels: token types (Gemma 3, PaliGemma, Qwen-VL) and positions (M-RoPE). All of it
follows from which tokens are visual, which are supervised, and which sample a token belongs to.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lingu_ray.distill.donation import indices_in_sample
from lingu_ray.distill.transfer import send
from lingu_ray.errors import UserError

_READ_BY_MODELS = ("image_sizes", "batch_num_images")
"""Sizes and counts of images, which models read number by number, so they stay on the CPU."""


@dataclass(frozen=True)
class ModelInputs:
    """A micro-batch as tensors `[B, T]` (see `plan_donation`), with the vision tensors of its images in order."""

    input_ids_BT: Tensor
    sample_BT: Tensor
    supervised_BT: Tensor
    visual_BT: Tensor
    vision: dict[str, Tensor]

    def to(self, device: torch.device) -> ModelInputs:
        """All tensors on `device`."""
        return ModelInputs(**send(vars(self) | {"vision": send(self.vision, device)}, device))

    @property
    def packed(self) -> bool:
        """Whether a row holds several samples."""
        return int(self.sample_BT.max()) >= len(self.sample_BT)


def token_arguments(model: Any, inputs: ModelInputs) -> dict[str, Any]:
    """Keyword arguments of a VLM's forward pass that say what its tokens are; neither positions nor a mask."""
    named = inspect.signature(model.forward).parameters
    arguments: dict[str, Any] = {"input_ids": inputs.input_ids_BT, **inputs.vision}
    if "mm_token_type_ids" in named:
        arguments["mm_token_type_ids"] = inputs.visual_BT.int()
    if "token_type_ids" in named:
        arguments["token_type_ids"] = _token_types(model, inputs)
    return arguments


def forward_arguments(model: Any, inputs: ModelInputs) -> dict[str, Any]:
    """Keyword arguments for the forward pass of a VLM without its head; padding is on the right.

    A causal decoder sees no padding on the right, and without a mask its attention is faster; families with
    `token_type_ids` see ahead. M-RoPE's positions of images are counted here: models would read their sizes back.
    """
    arguments = token_arguments(model, inputs) | {"attention_mask": None}
    if inputs.packed:  # positions that restart at 0 separate the samples of a row
        arguments["position_ids"] = _packed_positions(model, inputs)
    elif "token_type_ids" in arguments and (inputs.sample_BT < 0).any():
        arguments["attention_mask"] = (inputs.sample_BT >= 0).long()
    elif inputs.vision and hasattr(model, "get_rope_index"):
        arguments["position_ids"] = _rope_positions(model, inputs)
    return arguments


def check_image_tokens(inputs: ModelInputs, features: int) -> None:
    """Raise UserError unless the image tokens are as many as the features that replace them, in order."""
    if int(inputs.visual_BT.sum()) != features:
        raise unequal_images(inputs, f"the images have {features}")


def unequal_images(inputs: ModelInputs, said: str) -> UserError:
    """The error that the image tokens are not those of the images; `said`: what is known of these."""
    by_row = ", ".join(map(str, inputs.visual_BT.sum(1).tolist()))
    return UserError(
        f"input_ids: image tokens by row: {by_row}; {said}: rows were cut, or put together, after the processor. Leave "
        "out rows that are too long, with their images"
    )


def send_arguments(arguments: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The arguments on `device`, but for those that models read on the CPU."""
    kept = {name: arguments[name] for name in _READ_BY_MODELS if name in arguments}
    return kept | send({name: value for name, value in arguments.items() if name not in kept}, device)


def _token_types(model: Any, inputs: ModelInputs) -> Tensor:
    """PaliGemma: 0 on the prompt of the first answer, 1 after it. Gemma 3: 1 on image tokens."""
    if model.config.model_type == "paligemma":
        suffix_BT = (inputs.supervised_BT.cumsum(1) > 0) | (inputs.sample_BT < 0)
        return suffix_BT.long()
    return inputs.visual_BT.long()


def _packed_positions(model: Any, inputs: ModelInputs) -> Tensor:
    """Positions that start at 0 in every sample: `[B, T]`, or `[4, B, T]` for M-RoPE, the indices first."""
    index_BT = indices_in_sample(inputs.sample_BT)
    if not hasattr(model, "get_rope_index"):
        return index_BT
    return torch.cat([index_BT.unsqueeze(0), _rope_positions(model, inputs)])


def _rope_positions(model: Any, inputs: ModelInputs) -> Tensor:
    """M-RoPE's positions `[3, B, T]`, counted sample by sample; 0 on padding."""
    index_BT = indices_in_sample(inputs.sample_BT)
    row_K, column_K = (inputs.sample_BT >= 0).nonzero(as_tuple=True)
    sample_K, index_K = inputs.sample_BT[row_K, column_K], index_BT[row_K, column_K]
    shape = (int(sample_K.max()) + 1, int(index_K.max()) + 1)

    def a_sample_a_row(tensor_BT: Tensor) -> Tensor:
        spread_ST = tensor_BT.new_zeros(shape)
        spread_ST[sample_K, index_K] = tensor_BT[row_K, column_K]
        return spread_ST

    grid = inputs.vision.get("image_grid_thw")
    asked = {
        "input_ids": a_sample_a_row(inputs.input_ids_BT),
        "image_grid_thw": None if grid is None else grid.to(index_BT.device),
        "attention_mask": a_sample_a_row((inputs.sample_BT >= 0).long()),
        "mm_token_type_ids": a_sample_a_row(inputs.visual_BT.int()),  # Omni's finds images by their border tokens
    }
    named = inspect.signature(model.get_rope_index).parameters
    position_3ST, _ = model.get_rope_index(**{name: value for name, value in asked.items() if name in named})
    position_3BT = torch.zeros_like(index_BT).repeat(3, 1, 1)
    position_3BT[:, row_K, column_K] = position_3ST[:, sample_K, index_K].long()  # Qwen3-Omni has whole floats
    return position_3BT
