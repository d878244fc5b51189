"""Export of the finished model for Transformers and vLLM: the student's own class, without additional parameters."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel, PreTrainedModel, ProcessorMixin, SiglipVisionModel

from lingu_ray.atomic import whole_folder
from lingu_ray.config import LoraConfig
from lingu_ray.corpus.encode import Encoder
from lingu_ray.distill.lora import merged
from lingu_ray.runtime.distributed import is_main_process
from lingu_ray.runtime.sharding import gather_full


def export_model(
    model: PreTrainedModel, processor: ProcessorMixin, dtype: torch.dtype, folder: Path, lora: LoraConfig | None = None
) -> None:
    """Write safetensors, configuration, generation settings and processor to `folder`, whole or not at all.

    All workers must call it; the first one writes. It converts the model to `dtype`, so training cannot continue.
    """
    writes = is_main_process()
    tensors = gather_full(model.state_dict(keep_vars=True), writes)
    if not writes:
        return
    if lora is not None:
        tensors = merged(tensors, lora.rank, lora.alpha)
    tensors = as_published(model, tensors)
    cast = {id(tensor): tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors.values()}
    _end_turns(model, processor)
    nn.Module.to(model, dtype)  # the configuration that is saved names the model's dtype
    with whole_folder(folder) as temporary:
        model.save_pretrained(temporary, state_dict={name: cast[id(tensor)] for name, tensor in tensors.items()})
        processor.save_pretrained(temporary)


def _end_turns(model: PreTrainedModel, processor: ProcessorMixin) -> None:
    """Add the token that ends a turn in training to the end tokens of generation, where published settings lack it."""
    encoder = Encoder(processor, 1)
    turn, settings = encoder.end_of_turn_id, model.generation_config
    assert settings is not None  # a model that generates has some
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    if turn not in ends and turn in encoder.tokenizer.all_special_ids:
        settings.eos_token_id = [*(end for end in ends if end is not None), turn]


def as_published(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with their names in published checkpoints: CLIP and SigLIP towers keep all in a `vision_model`.

    vLLM looks for it there; Transformers 5.19 finds it with and without, and writes it without.
    """
    towers = [f"{n}." for n, m in model.named_modules() if isinstance(m, CLIPVisionModel | SiglipVisionModel)]

    def published(name: str) -> str:
        tower = next((tower for tower in towers if name.startswith(tower)), None)
        return f"{tower}vision_model.{name.removeprefix(tower).removeprefix('vision_model.')}" if tower else name

    return {published(name): tensor for name, tensor in tensors.items()}
