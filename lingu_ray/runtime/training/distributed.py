"""Collectives of a run's workers: sums of counts, and of gradients once a step.

Gradients are summed by one all-reduce over the accumulated gradients of a step. DDP's hooks would reduce them during
the last backward pass, which fails here: workers have different numbers of micro-batches, and a text-only micro-batch
leaves vision parameters without gradient. Gradients of sharded parameters (`sharding.py`) are summed by their backward
passes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import reduce

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from lingu_ray.waiting import waiting

_BUCKET_ELEMENTS = 2**25
"""128 MiB of float32 a message."""


def is_main_process() -> bool:
    """Whether this is rank 0, the one process of a run that writes; also true without a process group."""
    return not dist.is_initialized() or dist.get_rank() == 0


def is_alone() -> bool:
    """Whether this worker is the only one, which has nothing to tell others."""
    return not dist.is_initialized() or dist.get_world_size() == 1


def all_sum(values: Sequence[float], device: torch.device) -> list[float]:
    """Sum of each value over all workers (float64)."""
    if is_alone():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    with _waiting():
        dist.all_reduce(tensor)
        return tensor.tolist()


def all_max(value: float, device: torch.device) -> float:
    """Largest value of all workers (float64)."""
    if is_alone():
        return value
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    with _waiting():
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.item()


def _waiting() -> AbstractContextManager[None]:
    """Around collectives, which torch ends after half an hour: what keeps another worker, its own log says."""
    return waiting("other workers", "the logs of the others say what keeps them", logging.INFO)


def zero_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Zero the gradients in place: fresh memory takes longer. On GPUs a few launches zero all of them."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for sharded in (False, True):  # one call takes one kind
        if kind := [gradient for gradient in gradients if isinstance(gradient, DTensor) is sharded]:
            torch._foreach_zero_(kind)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its sum over the workers; a missing gradient counts as zero.

    Gradients of sharded parameters are sums already.
    """
    parameters = list(parameters)
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if is_alone():
        return
    for bucket in _buckets([p.grad for p in parameters if p.grad is not None and not isinstance(p, DTensor)]):
        if len(bucket) == 1 and bucket[0].is_contiguous():  # an embedding's is a gigabyte, which is not copied
            with _waiting():
                dist.all_reduce(bucket[0])
            continue
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        with _waiting():
            dist.all_reduce(flat)
        for gradient, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> float:
    """Scale all gradients so that their total norm over parameters and workers is at most `largest`.

    Returns the norm before. Sharded and replicated parameters may be mixed; replicated ones have equal gradients on all
    workers.
    """
    parameters = list(parameters)
    kinds = [[p for p in parameters if isinstance(p, DTensor) is sharded] for sharded in (False, True)]
    norms = [get_total_norm([p.grad for p in kind if p.grad is not None]) for kind in kinds if kind]
    norm = reduce(torch.hypot, [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms])
    for kind in kinds:
        clip_grads_with_norm_(kind, largest, norm)
    return float(norm)


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
