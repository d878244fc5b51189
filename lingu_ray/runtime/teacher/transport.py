"""How a request reaches the teacher actor: the donated KV in one of three ways, its small fields beside it.

object_store: as bytes in the node's shared memory, written once and read there without a copy. Works everywhere. From
and to a GPU by way of pinned memory, while the student continues.
cuda_ipc: the actor opens the worker's GPU memory and nothing is moved. Needs worker and teacher on one GPU.
nixl: Ray Direct Transport over NIXL, from memory to memory, on GPUs and CPUs, without the object store.

`auto` is cuda_ipc for an actor on its worker's GPU, where that works, and else object_store. All three pass on the same
bytes, which the actor must never write to. The hidden states that it returns are small and come back over the object
store.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import ray
import torch
from torch import Tensor
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from lingu_ray.config import TeacherConfig
from lingu_ray.distill.continuation import TeacherRequest
from lingu_ray.errors import UserError, first_line
from lingu_ray.waiting import waiting

TensorBytes = dict[str, Any]
Sent = tuple[dict[str, TensorBytes], Any]
"""A request as the actor's arguments: its small fields as bytes, and what stands for the KV."""

_KV = "kv_L2CHE"


class Transport(ABC):
    """One way for the KV; worker and actor each have an instance."""

    lends = False
    """Whether the actor reads the worker's own memory, so that the KV must live until the result is there."""

    def send(self, request: TeacherRequest) -> Callable[[], Sent]:
        """Begin to send; the call that is returned waits for the KV's copy, where there is one, in any thread."""
        fields = dict(vars(request))
        shared = self.share(fields.pop(_KV).detach()) if request.kv_L2CHE.numel() else None
        small = {name: to_bytes(value) for name, value in fields.items()}
        return lambda: (small, None if shared is None else shared())

    def receive(self, fields: dict[str, TensorBytes], shared: Any) -> TeacherRequest:
        """The request, on the actor's side."""
        tensors = {name: from_bytes(value) for name, value in fields.items()}
        if shared is not None:
            tensors[_KV] = self.open(shared)
        return TeacherRequest(**tensors)

    @abstractmethod
    def share(self, kv_L2CHE: Tensor) -> Callable[[], Any]:
        """On the worker: returns what the actor is called with in place of the KV."""

    @abstractmethod
    def open(self, shared: Any) -> Tensor:
        """On the actor: the KV."""


class ObjectStore(Transport):
    """Bytes in shared memory: Ray puts arguments above 100 KB there, and copies them in once, with several threads."""

    def share(self, kv_L2CHE: Tensor) -> Callable[[], TensorBytes]:
        """The KV's bytes."""
        copied = copy_to_host(kv_L2CHE)
        return lambda: to_bytes(copied())

    def open(self, shared: TensorBytes) -> Tensor:
        """A view of the shared memory, on the CPU."""
        return from_bytes(shared)


class CudaIpc(Transport):
    """A handle to the worker's GPU memory.

    The handle is torch's own, because Ray's transport of this name needs both actors on a GPU that Ray assigned, and
    the teacher uses its worker's. It carries an event: the actor's stream waits until the KV is written.
    """

    lends = True

    def share(self, kv_L2CHE: Tensor) -> Callable[[], list[Any]]:
        """Arguments of `rebuild_cuda_tensor`."""
        _, arguments = reduce_tensor(kv_L2CHE)
        return lambda: list(arguments)

    def open(self, shared: list[Any]) -> Tensor:
        """A view of the worker's memory."""
        shared[_STORAGE_DEVICE] = torch.cuda.current_device()  # the two processes may number the GPU differently
        return rebuild_cuda_tensor(*shared)


_STORAGE_DEVICE = 6
"""Index of `storage_device` among the arguments of `rebuild_cuda_tensor`."""


class Nixl(Transport):
    """Registered with NIXL by the worker, and fetched by the actor into its own memory.

    A teacher that dies is replaced and asked again, as with the others. A transfer that fails makes Ray end worker and
    actor; the run then resumes from its checkpoint.
    """

    def share(self, kv_L2CHE: Tensor) -> Callable[[], ray.ObjectRef]:
        """A reference, which keeps the KV until the actor has finished."""
        reference = ray.put([kv_L2CHE], _tensor_transport="nixl")
        return lambda: reference

    def open(self, shared: list[Tensor]) -> Tensor:
        """The KV, which Ray has fetched, on the device it came from."""
        return shared[0]


TransportName = Literal["object_store", "cuda_ipc", "nixl"]


def make_transport(name: TransportName) -> Transport:
    """The transport of this name."""
    return {"object_store": ObjectStore, "cuda_ipc": CudaIpc, "nixl": Nixl}[name]()


def choose_transport(settings: TeacherConfig, device: torch.device, gpus: int) -> TransportName:
    """The transport of `teacher.transport` for a worker on this device, with so many GPUs from Ray."""
    if settings.transport != "auto":
        return settings.transport
    same_gpu = settings.placement == "actor" and device.type == "cuda" and gpus == 1
    return "cuda_ipc" if same_gpu else "object_store"


def unreadable(actor: Any, device: torch.device) -> str | None:
    """Why an actor with a method `read` cannot read what this process lends it of its GPU's memory; None where it can.

    Containers may forbid it, and so may the allocator (expandable_segments).
    """
    lent = torch.arange(8.0, device=device)
    try:
        with waiting("the start of its teacher", "logs/teacher-*.jsonl"):
            read = ray.get(actor.read.remote(make_transport("cuda_ipc").share(lent)()))
    except Exception as error:  # of any type: torch, the driver and pickle raise many
        return first_line(getattr(error, "cause", None) or error)
    return None if read == lent.tolist() else f"it reads {read}"


def check_transport(settings: TeacherConfig, device: torch.device, gpus: int) -> None:
    """Raise UserError when a worker on this device, with so many GPUs from Ray, cannot use the transport."""
    name, otherwise = settings.transport, "or set teacher.transport=object_store"
    if name == "cuda_ipc" and device.type != "cuda":
        raise UserError(
            f"teacher.transport=cuda_ipc shares GPU memory: give the workers a GPU (ray.use_gpu), {otherwise}"
        )
    if name == "cuda_ipc" and gpus > 1:
        raise UserError(
            f"teacher.transport=cuda_ipc needs worker and teacher on one GPU, and they have {gpus}: "
            f"give each worker one, {otherwise}"
        )
    if name == "nixl" and find_spec("nixl") is None:
        raise UserError(f"teacher.transport=nixl needs a package: pip install 'lingu-ray[nixl]', {otherwise}")


def to_bytes(tensor: Tensor) -> TensorBytes:
    """The tensor as one contiguous uint8 array with dtype and shape, which Ray moves without pickling the content."""
    flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return {"bytes": flat, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": tuple(tensor.shape)}


def from_bytes(tensor_bytes: TensorBytes) -> Tensor:
    """The tensor of `to_bytes`, on the CPU, sharing the array's memory: never write to it."""
    data: np.ndarray = tensor_bytes["bytes"]
    dtype = getattr(torch, tensor_bytes["dtype"])
    if not data.size:
        return torch.empty(tensor_bytes["shape"], dtype=dtype)
    return torch.from_numpy(data).view(dtype).view(tensor_bytes["shape"])


def copy_to_host(tensor: Tensor) -> Callable[[], Tensor]:
    """Begin to copy a tensor from a GPU into pinned memory; the call that is returned waits for it, in any thread.

    One on the CPU stays where it is.
    """
    if tensor.device.type != "cuda":
        return lambda: tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(tensor.device))  # another GPU may be the current one

    def wait() -> Tensor:
        with torch.cuda.device(tensor.device):  # a thread's own is the first, on which CUDA would begin a context
            copied.synchronize()
        return host

    return wait
