"""Tensors on their way to the device, without the host waiting for it.

A copy from ordinary memory ends when the GPU has done all that was asked of it before. From pinned memory it takes its
turn like a kernel, and the host continues. So what is known on the CPU (ids, masks, indices, weights) is computed
there and sent; nothing is read back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lingu_ray.pinning import pinned

_LARGE = 2**20
"""Bytes from which a tensor is sent by itself; smaller ones travel in one buffer."""


def send(values: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The values by name, tensors among them on `device`; tensors on the CPU must not be written to.

    What is there already stays as it is, and so does all that is no tensor. A device without a number is the current
    one of its kind, as torch has it.
    """
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    if device.type != "cuda":
        return {**values, **{name: tensor.to(device) for name, tensor in tensors.items()}}
    here = {name: tensor for name, tensor in tensors.items() if tensor.device.type == "cpu"}  # CUDA pins nothing else
    there = {name: tensor.to(device) for name, tensor in tensors.items() if name not in here}
    large = {name: tensor for name, tensor in here.items() if tensor.nbytes >= _LARGE}
    small = {name: tensor for name, tensor in here.items() if tensor.nbytes < _LARGE}
    sent = {name: pinned(tensor).to(device, non_blocking=True) for name, tensor in large.items()}
    return {**values, **there, **sent, **_in_one(small, device)}


def _in_one(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Views of one buffer on the device, widest dtype first, so that each begins at a multiple of its item size."""
    if not tensors:
        return {}
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
    flat = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in ordered.values()]
    buffer = pinned(torch.cat(flat)).to(device, non_blocking=True)
    parts = buffer.split([len(part) for part in flat])
    return {
        name: part.view(tensor.dtype).view(tensor.shape)
        for (name, tensor), part in zip(ordered.items(), parts, strict=True)
    }
