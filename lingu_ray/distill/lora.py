"""LoRA students: low-rank adapters on the decoder's linear layers (Hu et al. 2022), merged away in the export.

The adapted decoder donates its KV. Its embeddings and the head do not change; vision tower and projector have their own
learning rates.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from lingu_ray.errors import UserError

_ADAPTER = "default"
_BASE = ".base_layer."


def add_adapters(
    decoder: nn.Module, *, rank: int, alpha: float, dropout: float = 0.0, targets: Collection[str] = (), seed: int = 0
) -> None:
    """Add adapters to the decoder's linear layers, in place; B starts as zero, so no output changes.

    Args:
        decoder: a text decoder; it is changed.
        rank, alpha: of every adapter, which is scaled by alpha / rank.
        dropout: on the adapters' input.
        targets: names of the layers that get one, such as q_proj; empty: every linear layer.
        seed: equal seeds give equal adapters.

    Raises:
        UserError: as `adapted_layers`.
    """
    layers = adapted_layers(decoder, targets)
    import peft

    adapters = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyrefly: ignore [bad-argument-type]  (typed int, used as a number)
        lora_dropout=dropout,
        target_modules=layers,
    )
    torch.manual_seed(seed)
    peft.inject_adapter_in_model(adapters, decoder, adapter_name=_ADAPTER)


def adapted_layers(decoder: nn.Module, targets: Collection[str]) -> list[str]:
    """Full names of the decoder's layers that get an adapter; `targets` as of `add_adapters`.

    Raises:
        UserError: peft is not installed, or the decoder has no layer of a target's name.
    """
    if find_spec("peft") is None:
        raise UserError("train.lora needs peft: pip install 'lingu-ray[lora]'")
    linear = [name for name, module in decoder.named_modules() if isinstance(module, nn.Linear)]
    kinds = {name.rpartition(".")[2] for name in linear}
    if unknown := set(targets) - kinds:
        raise UserError(
            f"train.lora.targets: the decoder has no linear layer named {', '.join(sorted(unknown))}; "
            f"it has {', '.join(sorted(kinds))}"
        )
    wanted = set(targets) or kinds
    return [name for name in linear if name.rpartition(".")[2] in wanted]


def share_in_experts(decoder: nn.Module) -> float:
    """The share of the decoder's weights in fused experts, `[experts, out, in]`, which are in no layer that gets an
    adapter."""
    parameters = list(decoder.parameters())
    return sum(one.numel() for one in parameters if one.ndim == 3) / sum(one.numel() for one in parameters)


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return re.search(r"\.lora_[AB]\.", name) is not None


def merged_name(name: str) -> str:
    """The name, without adapters, of what a tensor of an adapted model is part of."""
    return re.sub(rf"\.(base_layer|lora_[AB]\.{_ADAPTER})\.", ".", name)


def merged(tensors: dict[str, Tensor], rank: int, alpha: float) -> dict[str, Tensor]:
    """The model's tensors with the adapters merged in, under their names without adapters: W + alpha / rank · B A."""
    weights = {}
    for name, tensor in tensors.items():
        if name.endswith(f"{_BASE}weight"):
            layer = name.removesuffix(f"{_BASE}weight")
            down, up = (tensors[f"{layer}.lora_{part}.{_ADAPTER}.weight"] for part in "AB")
            tensor = tensor + alpha / rank * (up @ down)
        if not is_adapter(name):
            weights[merged_name(name)] = tensor
    return weights
