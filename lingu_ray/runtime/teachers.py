"""The teacher beside its worker: an actor that takes shared KV over the object store, or in the worker itself.

Both take the same requests and give the same numbers, equal to the bit on the CPU. Calls are stateless, so a teacher
that died is started again by Ray and asked again, and nothing of the step is lost.
"""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import ray
import torch
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from lingu_ray.config import TeacherConfig
from lingu_ray.distill.continuation import TeacherRequest
from lingu_ray.distill.teacher import Teacher
from lingu_ray.errors import UserError

Packed = dict[str, Any]


class TeacherClient(Protocol):
    """Where a worker sends its requests."""

    @property
    def head_UD(self) -> Tensor:
        """The teacher's output head."""
        ...

    def submit(self, request: TeacherRequest) -> Any:
        """Send a request; returns a ticket at once."""
        ...

    def result(self, ticket: Any) -> Tensor:
        """Wait for the ticket's `hidden_MD`."""
        ...


def make_teacher(settings: TeacherConfig, dtype: torch.dtype, device: torch.device, threads: int) -> TeacherClient:
    """The teacher that the settings place; an actor runs on the caller's node and dies with it."""
    if settings.placement == "in_process":
        return InProcessTeacher(Teacher.load(settings, dtype, device))
    return TeacherActorClient(settings, dtype, device, threads)


class InProcessTeacher:
    """The teacher in the worker's own process: the reference."""

    def __init__(self, teacher: Teacher):
        self.teacher = teacher
        self.head_UD = teacher.head_UD

    def submit(self, request: TeacherRequest) -> Tensor:
        """Answers at once: the ticket is the result."""
        return self.teacher.answer(request)

    def result(self, ticket: Tensor) -> Tensor:
        """The ticket."""
        return ticket


class TeacherActor:
    """The frozen teacher in a process of its own."""

    def __init__(self, settings: TeacherConfig, dtype: torch.dtype, device_type: str, threads: int):
        torch.set_num_threads(threads)
        self.device = torch.device(device_type)
        self.teacher = Teacher.load(settings, dtype, self.device)

    def head(self) -> Packed:
        """The output head, `[U, D]`."""
        return pack(self.teacher.head_UD)

    def answer(self, request: dict[str, Packed]) -> Packed:
        """Hidden states `[M, D]` for a packed request."""
        unpacked = TeacherRequest(**{name: unpack(value) for name, value in request.items()})
        return pack(self.teacher.answer(unpacked))

    def pid(self) -> int:
        """Its process."""
        return os.getpid()


class TeacherActorClient:
    """A teacher actor on this worker's node, on the worker's last GPU if it has some."""

    def __init__(self, settings: TeacherConfig, dtype: torch.dtype, device: torch.device, threads: int):
        self.device = device
        self.max_restarts = settings.max_restarts
        context = ray.get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU", [])
        # The worker owns the whole bundle: the actor asks for nothing of it, and is told its GPU by name.
        actor_class: Any = ray.remote(TeacherActor)
        self.actor = actor_class.options(
            num_cpus=0,
            num_gpus=0,
            max_restarts=settings.max_restarts,
            max_task_retries=settings.max_restarts,
            scheduling_strategy=NodeAffinitySchedulingStrategy(context.get_node_id(), soft=False),
            runtime_env={"env_vars": {"CUDA_VISIBLE_DEVICES": gpus[-1]}} if gpus else None,
        ).remote(settings, dtype, device.type, threads)
        self._head = self.actor.head.remote()

    @cached_property
    def head_UD(self) -> Tensor:
        """The teacher's output head; the first use waits until the actor has started."""
        return unpack(self._get(self._head)).to(self.device)

    def submit(self, request: TeacherRequest) -> ray.ObjectRef:
        """Write the request to the node's shared memory once; the actor reads it there without a copy."""
        packed = {name: pack(value) for name, value in vars(request).items()}
        return self.actor.answer.remote(ray.put(packed))

    def result(self, ticket: ray.ObjectRef) -> Tensor:
        """Wait for the actor's answer."""
        return unpack(self._get(ticket)).to(self.device)

    def _get(self, ref: ray.ObjectRef) -> Packed:
        try:
            return ray.get(ref)
        except RayActorError as error:
            raise UserError(
                "the teacher actor could not be started, or died more often than teacher.max_restarts "
                f"({self.max_restarts}) allows. Its last word: {error}"
            ) from error


def pack(tensor: Tensor) -> Packed:
    """A tensor as one contiguous uint8 array with dtype and shape: what Ray moves without pickling the content."""
    flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return {"bytes": flat, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": tuple(tensor.shape)}


def unpack(packed: Packed) -> Tensor:
    """The tensor of `pack`, on the CPU, sharing the array's memory: never write to it."""
    data: np.ndarray = packed["bytes"]
    dtype = getattr(torch, packed["dtype"])
    if not data.size:
        return torch.empty(packed["shape"], dtype=dtype)
    return torch.from_numpy(data).view(dtype).view(packed["shape"])
