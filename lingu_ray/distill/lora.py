"""LoRA students: low-rank adapters on the decoder's linear layers (Hu et al. 2022), merged away in the export.

The adapted decoder is what donates its KV. Its embeddings and the head stay as they are; vision tower and projector
learn by their own rates.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from lingu_ray.config import LoraConfig
from lingu_ray.errors import UserError

_ADAPTER = "default"
_BASE = ".base_layer."


def add_adapters(decoder: nn.Module, settings: LoraConfig, seed: int) -> None:
    """Give the decoder's linear layers adapters, in place; they begin as zero, so no output changes.

    Equal seeds give equal adapters. Raises UserError when peft is missing, or the decoder has no layer of a target's
    name.
    """
    try:
        import peft
    except ImportError as error:
        raise UserError("train.lora needs peft: pip install 'lingu-ray[lora]'") from error
    linear = [name for name, module in decoder.named_modules() if isinstance(module, nn.Linear)]
    kinds = {name.rpartition(".")[2] for name in linear}
    if unknown := set(settings.targets) - kinds:
        raise UserError(
            f"train.lora.targets: the decoder has no linear layer named {', '.join(sorted(unknown))}; "
            f"it has {', '.join(sorted(kinds))}"
        )
    wanted = set(settings.targets) or kinds
    adapters = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyrefly: ignore [bad-argument-type]  (typed int, used as a number)
        lora_dropout=settings.dropout,
        target_modules=[name for name in linear if name.rpartition(".")[2] in wanted],
    )
    torch.manual_seed(seed)
    peft.inject_adapter_in_model(adapters, decoder, adapter_name=_ADAPTER)


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return re.search(r"\.lora_[AB]\.", name) is not None


def merged(tensors: dict[str, Tensor], settings: LoraConfig) -> dict[str, Tensor]:
    """A model's tensors with the adapters merged in, under the names that they had without: W + alpha / rank · B A."""
    weights = {}
    for name, tensor in tensors.items():
        if name.endswith(f"{_BASE}weight"):
            layer = name.removesuffix(f"{_BASE}weight")
            down, up = (tensors[f"{layer}.lora_{part}.{_ADAPTER}.weight"] for part in "AB")
            tensor = tensor + settings.alpha / settings.rank * (up @ down)
        if not is_adapter(name):
            weights[name.replace(_BASE, ".")] = tensor
    return weights
