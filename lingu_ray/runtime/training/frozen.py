"""Frozen weights in bf16: of linear layers, which autocast rounds anew in every pass, as it keeps only what learns.

A weight that bf16 holds as it is, as all of a model published in bf16, is held in it: the same products to the bit, in
half of the memory, without a rounded copy of each that a backward pass would keep. Any other stays float32, and so do
embeddings and norms, which autocast does not round.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def hold_in_bf16(model: nn.Module) -> None:
    """Hold in bf16, in place, what `frozen_in_linear` finds, where nothing is lost. For a model under autocast."""
    for parameter in frozen_in_linear(model):
        rounded = parameter.data.bfloat16()
        if torch.equal(rounded.float(), parameter.data):
            parameter.data = rounded


def frozen_in_linear(model: nn.Module) -> list[nn.Parameter]:
    """Frozen parameters that linear layers alone use: no tied embeddings, and none that FSDP2 shards."""
    inside: dict[int, nn.Parameter] = {}
    elsewhere: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if type(module) is nn.Linear and not parameter.requires_grad and not isinstance(parameter, DTensor):
                inside[id(parameter)] = parameter
            else:
                elsewhere.add(id(parameter))
    return [parameter for key, parameter in inside.items() if key not in elsewhere]
