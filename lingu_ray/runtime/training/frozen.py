"""The dtype that each weight is held in while a student trains: float32, but for frozen weights of linear layers.

Autocast rounds these anew in every pass, as it keeps only what learns. One that bf16 holds as it is, as all of a model
published in bf16, is held in it: the same products to the bit, in half of the memory, without a rounded copy of each
that a backward pass would keep. Any other stays float32, and so do embeddings and norms, which autocast does not round.

A student comes in the dtypes of its files, which are mapped into memory. What becomes float32 does so on the device, a
weight at a time, and under FSDP2 a layer at a time: a node never holds a float32 copy of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def place(module: nn.Module, device: torch.device, in_bf16: Iterable[nn.Parameter]) -> None:
    """Move a module to `device`, in place, its parameters in float32, but for those of `in_bf16` that bf16 holds.

    What FSDP2 has sharded stays as it is.
    """
    rounded = {id(parameter) for parameter in in_bf16}

    def placed(tensor: Tensor) -> Tensor:
        there = tensor.to(device)
        if not isinstance(tensor, nn.Parameter) or isinstance(tensor, DTensor) or not tensor.is_floating_point():
            return there
        if id(tensor) in rounded and torch.equal(there.bfloat16().to(there.dtype), there):
            return there.bfloat16()
        return there.float()

    module._apply(placed)


@contextmanager
def seen_as_float32(module: nn.Module) -> Iterator[None]:
    """Within it, the parameters seem to be float32, and are all zero, without memory: for what looks at dtypes."""
    held = [(parameter, parameter.data) for parameter in module.parameters()]
    for parameter, data in held:
        parameter.data = torch.zeros((), device=data.device).expand_as(data)
    try:
        yield
    finally:
        for parameter, data in held:
            parameter.data = data


def frozen_in_linear(model: nn.Module) -> list[nn.Parameter]:
    """Frozen parameters that linear layers alone use: no tied embeddings."""
    inside: dict[int, nn.Parameter] = {}
    elsewhere: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if type(module) is nn.Linear and not parameter.requires_grad:
                inside[id(parameter)] = parameter
            else:
                elsewhere.add(id(parameter))
    return [parameter for key, parameter in inside.items() if key not in elsewhere]
