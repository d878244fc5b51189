"""The teacher beside its worker: an actor that is sent the shared KV (`transport`), or in the worker itself.

Both take the same requests and give the same numbers, equal to the bit on the CPU. Calls are stateless, so a teacher
that died is started again by Ray and asked again, and nothing of the step is lost.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import ray
import torch
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from lingu_ray.config import TeacherConfig
from lingu_ray.distill.continuation import TeacherRequest
from lingu_ray.distill.head import OutputHead
from lingu_ray.distill.teacher import Teacher
from lingu_ray.errors import UserError
from lingu_ray.runtime.transport import Packed, check_transport, make_transport, pack, unpack


class TeacherClient(Protocol):
    """Where a worker sends its requests."""

    @property
    def output_head(self) -> OutputHead:
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
        self.output_head = teacher.output_head

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
        self.transport = make_transport(settings)
        self.teacher = Teacher.load(settings, dtype, self.device)

    def head(self) -> dict[str, Any]:
        """The output head: its fields, the weight packed."""
        head = self.teacher.output_head
        return {**vars(head), "weight_VD": pack(head.weight_VD)}

    def answer(self, fields: dict[str, Packed], shared: Any) -> Packed:
        """Hidden states `[M, D]` for a request as `Transport.send` gave it."""
        return pack(self.teacher.answer(self.transport.receive(fields, shared)))

    def pid(self) -> int:
        """Its process."""
        return os.getpid()


@dataclass(frozen=True)
class Ticket:
    """An answer that is on its way, and what must not be freed before it has come."""

    answer: ray.ObjectRef
    lent: Tensor | None


class TeacherActorClient:
    """A teacher actor on this worker's node, on the worker's last GPU if it has some."""

    def __init__(self, settings: TeacherConfig, dtype: torch.dtype, device: torch.device, threads: int):
        self.device = device
        self.max_restarts = settings.max_restarts
        context = ray.get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU", [])
        check_transport(settings, device, len(gpus))
        self.transport = make_transport(settings)
        # The worker owns the whole bundle: the actor asks for nothing of it, and is told its GPU by name.
        remote: Any = ray.remote  # whose types do not know tensor transports
        actor_class = remote(enable_tensor_transport=settings.transport == "nixl")(TeacherActor)
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
    def output_head(self) -> OutputHead:
        """The teacher's output head; the first use waits until the actor has started."""
        fields = self._get(self._head)
        weight_VD = unpack(fields["weight_VD"]).to(self.device)
        return OutputHead(weight_VD, fields["scale"], fields["softcap"])

    def submit(self, request: TeacherRequest) -> Ticket:
        """Send the request by `teacher.transport`; the actor answers one after another."""
        answer = self.actor.answer.remote(*self.transport.send(request))
        return Ticket(answer, request.kv_L2PHE if self.transport.lends else None)

    def result(self, ticket: Ticket) -> Tensor:
        """Wait for the actor's answer."""
        return unpack(self._get(ticket.answer)).to(self.device)

    def _get(self, ref: ray.ObjectRef) -> Packed:
        try:
            return ray.get(ref)
        except RayActorError as error:
            raise UserError(
                "the teacher actor could not be started, or died more often than teacher.max_restarts "
                f"({self.max_restarts}) allows. Its last word: {error}"
            ) from error
