"""The vision of a new VLM, as `student.from_teacher` says: sizes, image processing, a pretrained tower's weights."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModel, Idefics3VisionConfig, PreTrainedConfig
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, cached_file

from lingu_ray.config import VisionConfig
from lingu_ray.distill.towers import States, VisionParts, tower_states, vision_config, vision_parts
from lingu_ray.errors import UserError
from lingu_ray.hub import HUB_ERRORS
from lingu_ray.runtime.models.weights import load_whole, loading
from lingu_ray.storage import local_copy

log = logging.getLogger(__name__)

SETTING = "student.from_teacher.tower"


def random_vision(settings: VisionConfig) -> VisionParts:
    """The vision of a new VLM whose tower is random."""
    sizes = {name: cast(int, value) for name, value in settings if name not in ("tower", "tower_revision")}
    tower = Idefics3VisionConfig(
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
    )
    return VisionParts(tower, sizes["pixel_shuffle"])


def pretrained_vision(settings: VisionConfig, found: PreTrainedConfig) -> VisionParts:
    """The vision of a new VLM whose tower is the pretrained one of this configuration; no weights are read.

    Raises:
        UserError: it is no SigLIP, DINOv2 or CLIP, or does not fit the settings.
    """
    origin = f"{SETTING}={settings.tower}"
    vision = vision_config(found, origin)
    return vision_parts(vision, settings.image_size, settings.pixel_shuffle, _preprocessor(settings), origin)


def load_tower(settings: VisionConfig, vision: VisionParts) -> States | None:
    """The weights of the pretrained tower by the names of the new VLM's, in float32; None where there is none.

    Raises:
        UserError: it cannot be loaded, or not all of it.
    """
    if settings.tower is None:
        return None
    origin = f"{SETTING}={settings.tower}"
    with loading(SETTING, settings.tower, "cannot be loaded"):
        model = load_whole(
            AutoModel,
            origin,
            local_copy(settings.tower),
            revision=settings.tower_revision,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
        )
    if isinstance(vision.tower, Idefics3VisionConfig) and vision.side & (vision.side - 1):
        log.warning(
            "%s: %d patches a side: in bfloat16, and for some numbers in vLLM, Idefics3 gives a few of them a "
            "neighbor's position; powers of two (8, 16, 32) are exact everywhere",
            *(SETTING, vision.side),
        )
    return tower_states(model, vision)


def _preprocessor(settings: VisionConfig) -> dict[str, Any]:
    """What the tower's own files say of image processing; empty where they say nothing."""
    path, revision = local_copy(cast(str, settings.tower)), settings.tower_revision
    for name in (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME):
        try:
            file = cached_file(path, name, revision=revision, _raise_exceptions_for_missing_entries=False)
            found = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
        except HUB_ERRORS as error:
            raise UserError(f"{SETTING}={settings.tower}: its {name} cannot be read: {error}") from error
        if inner := found.get("image_processor") if name == PROCESSOR_NAME else found:
            return inner
    return {}
