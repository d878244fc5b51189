"""Fully sharded data parallelism (FSDP2): each worker keeps a share of every decoder layer, and its optimizer state.

The decoder's layers alone are sharded: nearly all of the weights, and the one part of the student that every forward
pass runs through. A text-only micro-batch leaves out vision tower and projector, and the loss reads the head outside
of any forward pass; a worker waiting there for the others would wait for ever. So tower, projector, embeddings, norm
and head stay whole on each worker, and their gradients are summed once a step, as `distributed.py` says.

A sharded layer talks to the other workers in each of its passes, so all workers must run the same passes. In training
`dummy_micro_batches` adds what is missing; where passes cannot match (validation, generation) layers are `unsharded`
for a while.

Gradients are scattered in every backward pass, not in the step's last alone: till then they would have to be kept
unsharded, which takes as much memory as the weights that sharding is to save.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lingu_ray.corpus.batch import MicroBatch
from lingu_ray.distill.student import Student
from lingu_ray.runtime.distributed import all_max


def shard(student: Student, device: torch.device) -> None:
    """Shard the decoder's layers over all workers, on `device`; with one worker there is nothing to shard.

    Each worker must come with the same weights.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    sharded = [fully_shard(layer, mesh=mesh) for layer in student.layers]
    # The decoder, sharding nothing of its own, makes the layers work ahead together.
    fully_shard(student.decoder, mesh=mesh, ignored_params=set(student.decoder.parameters()))
    for before, layer in zip([sharded[0], *sharded], sharded, strict=False):
        # a sum, no mean: the loss is normalized by the counts of all workers
        layer.set_gradient_divide_factor(1.0)
        layer.set_force_sum_reduction_for_comms(True)
        # What a backward pass fetches ahead would else be told from the forward passes since the last one, which may
        # differ between workers. The first layer names itself: it fetches nothing.
        layer.set_modules_to_backward_prefetch([before])


def is_sharded(decoder: nn.Module) -> bool:
    """Whether `shard` sharded it."""
    return isinstance(decoder, FSDPModule)


@contextmanager
def unsharded(decoder: nn.Module) -> Iterator[None]:
    """Within it every worker has all weights, so that it may run as many forward passes as it likes, and none backward.

    All workers must enter, between two steps. It takes the memory of an unsharded decoder.
    """
    if not isinstance(decoder, FSDPModule):
        yield
        return
    layers = [module for module in decoder.modules() if isinstance(module, FSDPModule) and module is not decoder]
    for layer in layers:
        layer.set_reshard_after_forward(False)
        layer.unshard()
    try:
        yield
    finally:
        for layer in layers:
            layer.set_reshard_after_forward(True)
            layer.reshard()


def dummy_micro_batches(batches: list[MicroBatch], device: torch.device) -> list[MicroBatch]:
    """Micro-batches that teach nothing, as many as this worker has fewer than the one with most.

    They are the smallest one again, with answers that count neither for CE nor, as nobody plans it, for KD.
    """
    missing = int(all_max(len(batches), device)) - len(batches)
    smallest = min(batches, key=lambda batch: batch.input_ids_BT.numel())
    return [replace(smallest, sampled_S=torch.ones_like(smallest.sampled_S))] * missing


def gather_full(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """The tensors, detached, whole and on the CPU; tied ones stay one. Nothing where they are not to be kept.

    All workers must call it, with the same names.
    """
    collected: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in collected:
            whole = tensor.detach()
            whole = whole.full_tensor() if isinstance(whole, DTensor) else whole
            collected[id(tensor)] = whole.cpu().contiguous() if keep else whole.new_empty(0)
    return {name: collected[id(tensor)] for name, tensor in tensors.items()} if keep else {}


def local_shard(tensor: Tensor, like: Tensor) -> Tensor:
    """This worker's share of a whole tensor, sharded as `like` is; nothing is sent."""
    if not isinstance(like, DTensor):
        return tensor
    tensor = tensor.to(like.device)
    # cloned: a part alone would keep the whole in memory
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None).clone()


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, tied ones once, under their first name."""
    names: dict[int, str] = {}
    tensors = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), name)
    return {name: tensors[name] for name in names.values()}
