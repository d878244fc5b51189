"""What the workers of a run tell each other: sums of counts, and of gradients once a step.

Gradients are summed by one all-reduce over the accumulated gradients of the whole step. DDP's hooks would reduce during
the last backward pass, which goes wrong here: workers cut their rows into different numbers of micro-batches, and a
text-only micro-batch leaves vision parameters without gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

_BUCKET_ELEMENTS = 2**25
"""128 MiB of float32 a message."""


def all_sum(values: Sequence[float], device: torch.device) -> list[float]:
    """Sum of each value over all workers (float64)."""
    if not dist.is_initialized():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its sum over the workers; a parameter one of them did not use counts as zero there."""
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if not dist.is_initialized():
        return
    for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        for gradient, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def _buckets(gradients: list[Tensor]) -> Iterable[list[Tensor]]:
    bucket, size = [], 0
    for gradient in gradients:
        if bucket and size + gradient.numel() > _BUCKET_ELEMENTS:
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel()
    if bucket:
        yield bucket
