"""Export of the finished model for Transformers and vLLM: the student's own class, without additional parameters."""

from __future__ import annotations

import logging
import re
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel, PreTrainedModel, ProcessorMixin, SiglipVisionModel

from lingu_ray.atomic import whole_folder
from lingu_ray.config import LoraConfig
from lingu_ray.corpus.encode import Encoder
from lingu_ray.distill.lora import merged, merged_name
from lingu_ray.processors import write_processor
from lingu_ray.runtime.models.verify import verify_export
from lingu_ray.runtime.training.distributed import is_main_process
from lingu_ray.runtime.training.sharding import gather_full

log = logging.getLogger(__name__)


def export_model(
    model: PreTrainedModel, processor: ProcessorMixin, dtype: torch.dtype, folder: Path, lora: LoraConfig | None = None
) -> float:
    """Write safetensors, configuration, generation settings and processor to `folder`, whole or not at all.

    All workers must call it; the first one writes. It converts the model to `dtype`, so training cannot continue.

    Returns:
        Seconds that it took to load what was written, compare it with the model, and ask it a question.

    Raises:
        UserError: what was written is not the model (see `verify_export`); `folder` is as it was.
    """
    tensors = exported_tensors(model, dtype, lora)
    if not is_main_process():
        return 0.0
    with whole_folder(folder) as temporary:
        return write_verified(model, processor, tensors, dtype, temporary)


def write_verified(
    model: PreTrainedModel, processor: ProcessorMixin, tensors: dict[str, Tensor], dtype: torch.dtype, folder: Path
) -> float:
    """Write the model with these tensors and verify what was written (errors as `export_model`); returns the seconds
    that verifying took.
    """
    write_files(model, processor, tensors, dtype, folder)
    begin = time.perf_counter()
    verify_export(folder, tensors, processor, dtype, trust_remote_code=has_own_code(model, processor))
    return time.perf_counter() - begin


def has_own_code(model: PreTrainedModel, processor: ProcessorMixin) -> bool:
    """Whether the model, its processor or a part of that has code of its own, which was trusted when it was loaded."""
    parts = [getattr(processor, name, None) for name in ("tokenizer", "image_processor")]
    return any(getattr(one, "_auto_class", None) is not None for one in (model, processor, *parts))


def exported_tensors(model: PreTrainedModel, dtype: torch.dtype, lora: LoraConfig | None = None) -> dict[str, Tensor]:
    """The tensors to export by the names of the model's class, in `dtype`: unsharded, adapters merged, on the CPU.

    All workers must call it; empty on all but the first. They are made one by one: beside them one weight is held in
    the dtype that it was trained in.
    """
    parts = defaultdict[str, dict[str, Tensor]](dict)
    for name, tensor in model.state_dict(keep_vars=True).items():
        parts[merged_name(name)][name] = tensor
    made: dict[int, list[Tensor]] = {}  # tied ones stay one tensor
    exported: dict[str, Tensor] = {}
    for name, of_name in parts.items():
        key = id(next(iter(of_name.values())))
        if key not in made:
            gathered = gather_full(of_name, is_main_process())
            full = merged(gathered, lora.rank, lora.alpha) if lora is not None else gathered
            made[key] = [one.to(dtype) if one.is_floating_point() else one for one in full.values()]
        for one in made[key]:  # or none
            exported[name] = one
    return exported


def write_files(
    model: PreTrainedModel, processor: ProcessorMixin, tensors: dict[str, Tensor], dtype: torch.dtype, folder: Path
) -> None:
    """Write a model with these tensors, which are of `dtype`, and its processor; the model is converted to `dtype`."""
    complete_settings(model, processor)
    nn.Module.to(model, dtype)  # the configuration that is saved names the model's dtype
    for part in filter(None, (getattr(model.config, name) for name in model.config.sub_configs)):
        part.dtype = dtype  # not the one that was trained in
    model.save_pretrained(folder, state_dict=as_published(model, tensors))
    write_processor(processor, folder)


def complete_settings(model: PreTrainedModel, processor: ProcessorMixin) -> None:
    """Give model and processor what training used and their files lack, and drop what cannot be saved.

    The chat template, the token that ends a turn as an end of generation; generation flags without effect.
    """
    encoder = Encoder(processor, 1)
    if not processor.chat_template:
        processor.chat_template = encoder.template
    _end_turns(model, encoder)
    _drop_idle_flags(model)


def _end_turns(model: PreTrainedModel, encoder: Encoder) -> None:
    """Add the token that ends a turn in training to the end tokens of generation, where published settings lack it."""
    turn, settings = encoder.end_of_turn_id, model.generation_config
    assert settings is not None  # a model that generates has some
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    if turn not in ends:
        settings.eos_token_id = [*(end for end in ends if end is not None), turn]


def _drop_idle_flags(model: PreTrainedModel) -> None:
    """Drop generation flags that have no effect beside the others, such as a temperature without `do_sample`.

    Transformers loads them and ignores them, but refuses to save them.
    """
    settings = model.generation_config
    assert settings is not None
    try:
        settings.validate(strict=True)
    except ValueError as error:
        idle = re.findall(r"^- `(\w+)`:", str(error), re.MULTILINE)
        for name in idle:
            setattr(settings, name, None)
        if idle:
            log.info("the student's generation_config.json: %s have no effect there, and are dropped", ", ".join(idle))


def as_published(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with their names in published checkpoints: CLIP and SigLIP towers keep all in a `vision_model`.

    vLLM looks for it there; Transformers 5.19 finds it with and without, and writes it without.
    """
    towers = [f"{n}." for n, m in model.named_modules() if isinstance(m, CLIPVisionModel | SiglipVisionModel)]

    def published(name: str) -> str:
        tower = next((tower for tower in towers if name.startswith(tower)), None)
        return f"{tower}vision_model.{name.removeprefix(tower).removeprefix('vision_model.')}" if tower else name

    return {published(name): tensor for name, tensor in tensors.items()}
