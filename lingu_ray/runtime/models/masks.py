"""What the masks of a student allow: flash attention, packed rows."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import LlamaConfig, PreTrainedConfig
from transformers.masking_utils import create_causal_mask
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from lingu_ray.config import TrainConfig
from lingu_ray.errors import UserError


def check_masks(settings: TrainConfig, student: PreTrainedConfig) -> None:
    """Check that the student sees what it should with these settings.

    Raises:
        UserError: it sees ahead where the attention does not, or where packed rows would be seen wrongly.
    """
    if settings.attention != "sdpa" and sees_ahead(student):
        raise UserError(
            f"train.attention={settings.attention}: {student.model_type} sees ahead within images or its prompt, "
            "which flash attention does not: leave train.attention out"
        )
    if settings.packing and student.model_type == "paligemma":
        raise UserError("train.packing: PaliGemma's prompts see all of their row, so packed samples would see others")
    if settings.packing and sees_ahead(student) and not images_keep_their_places():
        raise UserError(
            f"train.packing: Transformers {transformers.__version__} lets {student.model_type} see ahead at wrong "
            "places of packed rows: leave train.packing out, or install Transformers 5.22"
        )


def sees_ahead(config: PreTrainedConfig) -> bool:
    """Whether tokens of the VLM's decoder see later ones where its token types say so (Gemma 3, PaliGemma)."""
    model: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    return model is not None and "token_type_ids" in inspect.signature(model.forward).parameters


def images_keep_their_places() -> bool:
    """Whether Transformers asks by places in the row which tokens see ahead; 5.24 asks by places in the sample."""
    position_ids = torch.tensor([[0, 1, 0, 1]])  # two samples of two tokens: the second one is an image

    def of_the_image(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= 2) & (key >= 2)

    config = LlamaConfig()
    config._attn_implementation = "sdpa"
    mask = create_causal_mask(config, torch.zeros(1, 4, 1), None, None, position_ids, or_mask_function=of_the_image)
    return isinstance(mask, Tensor) and bool(mask[0, 0, 2, 3])
