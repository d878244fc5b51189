"""Fully sharded data parallelism (FSDP2): each worker keeps a share of every decoder layer, and its optimizer state.

The decoder's layers alone are sharded: nearly all of the weights, and the one part of the student that every forward
pass runs through. A text-only micro-batch skips vision tower and projector, and the loss reads the head outside of any
forward pass: a worker that waited for the others there would wait forever. So tower, projector, embeddings, norm and
head are replicated, and their gradients are summed once a step (`distributed.py`).

A sharded layer talks to the other workers in each of its passes, so all workers must run the same passes. In training
`dummy_micro_batches` adds what is missing; where passes cannot match (validation, generation) layers are `unsharded`
for a while.

Gradients are reduce-scattered in every backward pass, not only in the last one of a step: until then they would be
unsharded, and take the memory that sharding saves.

Checkpoints take tensors apart and put them together here rather than by `torch.distributed.checkpoint.state_dict`: the
tests prove that both give the same bits, but its `set_optimizer_state_dict` allocates the moments twice, so that a run
which fits into memory could not be resumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from lingu_ray.corpus.batch import MicroBatch
from lingu_ray.distill.student import Student
from lingu_ray.runtime.checkpoints.tensor_files import Piece, whole
from lingu_ray.runtime.training.distributed import all_max, is_alone
from lingu_ray.runtime.training.frozen import place


def shard(student: Student, device: torch.device, bf16: bool) -> None:
    """Shard the decoder's layers over all workers, on `device`; one worker alone keeps them as they are.

    All workers must have the same weights, and know what of them learns; a layer is whole on the device for a moment.
    With `bf16` layers run under autocast alone: matrices, which it would round, are gathered rounded, in half of the
    bytes, so frozen ones are held so (see `place`); vectors (norms) stay float32, and are replicated. Gradients are
    reduced in float32.
    """
    if is_alone():
        return
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy, replicated = MixedPrecisionPolicy(), set[nn.Parameter]()
    if bf16:
        policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
        replicated = {parameter for parameter in student.layers.parameters() if parameter.ndim == 1}
    sharded = []
    for layer in student.layers:
        place(layer, device, [p for p in layer.parameters() if bf16 and not p.requires_grad and p.ndim > 1])
        sharded.append(fully_shard(layer, mesh=mesh, mp_policy=policy, ignored_params=replicated))
    # The decoder has no shards of its own; as their root it lets the layers prefetch each other.
    fully_shard(student.decoder, mesh=mesh, ignored_params=set(student.decoder.parameters()))
    for before, layer in zip([sharded[0], *sharded], sharded, strict=False):
        # a sum, not a mean: the loss is normalized by the counts of all workers
        layer.set_gradient_divide_factor(1.0)
        layer.set_force_sum_reduction_for_comms(True)
        # By default the backward pass prefetches in the order of the forward passes since the last one, which may
        # differ between workers. The first layer names itself, so it prefetches nothing.
        layer.set_modules_to_backward_prefetch([before])


def is_sharded(decoder: nn.Module) -> bool:
    """Whether `shard` sharded the decoder's layers."""
    return isinstance(decoder, FSDPModule)


@contextmanager
def unsharded(decoder: nn.Module) -> Iterator[None]:
    """Unshard the decoder for a while: each worker may run any number of forward passes, but no backward pass.

    All workers must enter it together, between two steps. It takes the memory of an unsharded decoder.
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
    """Micro-batches without a loss that bring this worker to the largest number of micro-batches of any worker.

    Each is a copy of the smallest one whose answers do not count for CE; it has no plan, so none counts for KD.
    """
    missing = int(all_max(len(batches), device)) - len(batches)
    smallest = min(batches, key=lambda batch: batch.input_ids_BT.numel())
    return [replace(smallest, sampled_BT=torch.ones_like(smallest.sampled_BT))] * missing


def gather_full(tensors: dict[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """The tensors unsharded, detached and on the CPU; tied ones stay one tensor. Empty where `keep` is false.

    All workers must call it, with the same names.
    """
    gathered: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in gathered:
            full = tensor.detach()
            full = full.full_tensor() if isinstance(full, DTensor) else full
            gathered[id(tensor)] = full.cpu().contiguous() if keep else full.new_empty(0)
    return {name: gathered[id(tensor)] for name, tensor in tensors.items()} if keep else {}


def local_piece(tensor: Tensor) -> Piece:
    """What this worker keeps of a tensor, detached: rows of a sharded one, and all of any other."""
    if not isinstance(tensor, DTensor):
        return whole(tensor.detach())
    (chunk,) = tensor.__create_chunk_list__()  # what torch.distributed.checkpoint asks
    return Piece(tensor.to_local().detach(), chunk.offsets[0], len(tensor))


def first_row(tensor: Tensor) -> Tensor:
    """The first row of a tensor, detached, as a tensor with one row; of a scalar its value. All workers must call."""
    if not isinstance(tensor, DTensor):
        return tensor.detach()[:1].clone() if tensor.ndim else tensor.detach().clone()
    piece = local_piece(tensor)
    has_it = piece.first == 0 and len(piece.rows) > 0
    row = piece.rows[:1].clone() if has_it else piece.rows.new_zeros(1, *tensor.shape[1:])
    dist.all_reduce(row)
    return row


def like(tensor: Tensor, rows: Tensor) -> Tensor:
    """A tensor placed as `tensor` is, of which `rows` are those that this worker keeps; without communication."""
    if not isinstance(tensor, DTensor):
        return rows
    return DTensor.from_local(
        rows, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; tied ones once, under their first name."""
    names: dict[int, str] = {}
    tensors = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), name)
    return {name: tensors[name] for name in names.values()}
