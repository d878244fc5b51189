"""The teacher of a worker: an actor on its node that is sent the shared KV (`transport`), or in the worker itself.

An actor is the worker's own, or that of all workers of the node, where requests wait for their turn. All of them take
the same requests and return the same numbers, equal to the bit on the CPU. Calls are stateless, so Ray restarts a
teacher that died and asks it again, and nothing of the step is lost.
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import ray
import ray.train
import torch
from ray.exceptions import ActorUnschedulableError, GetTimeoutError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from lingu_ray.config import TeacherConfig
from lingu_ray.distill.continuation import TeacherRequest
from lingu_ray.distill.head import OutputHead
from lingu_ray.distill.teacher import Teacher, TeacherClient
from lingu_ray.distill.transfer import send
from lingu_ray.errors import UserError
from lingu_ray.runtime.cluster.memory import FOR_TRAINING, explained
from lingu_ray.runtime.cluster.preemption import preempted
from lingu_ray.runtime.models.load import load_teacher
from lingu_ray.runtime.teacher.transport import (
    TensorBytes,
    TransportName,
    check_transport,
    choose_transport,
    from_bytes,
    make_transport,
    to_bytes,
    unreadable,
)
from lingu_ray.runtime.training.distributed import all_sum, is_main_process
from lingu_ray.runtime.training.precision import use_tensor_cores
from lingu_ray.waiting import waiting

log = logging.getLogger(__name__)

_OWNER_DIED = "its owner has died"
_ANSWER_WITHIN_S = 1800.0
"""What a teacher that runs may take for a request: as long as torch lets workers wait for each other."""


Log = Callable[[], AbstractContextManager[None]]
"""Opens the log of the actor's process."""
Check = Callable[[], object]
"""Raises UserError where the teacher must not be loaded."""


def make_teacher(
    settings: TeacherConfig,
    dtype: torch.dtype,
    device: torch.device,
    threads: int,
    log_to: Log = nullcontext,
    check: Check = nullcontext,
) -> TeacherClient:
    """The teacher, where `teacher.placement` puts it; an actor runs on the caller's node and ends with it.

    All workers must call it.
    """
    if settings.placement == "in_process":
        check()
        return load_teacher(settings, dtype, device)
    start = partial(start_teacher, settings, dtype, device, threads, log_to, check)
    actor = _of_the_node(start, device) if settings.placement == "node" else start()
    return TeacherActorClient(settings, device, actor)


def _of_the_node(start: Callable[[str], Any], device: torch.device) -> Any:
    """The one actor of this node: its first worker starts it, and owns it; then the others find it by name."""
    # A name of this group of workers: a teacher of the one before it, which has failed, may still be there.
    drawn = secrets.randbits(48) if is_main_process() else 0
    name = f"teacher-{int(all_sum([drawn], device)[0]):012x}-{ray.get_runtime_context().get_node_id()}"
    first = ray.train.get_context().get_local_rank() == 0
    actor = start(name) if first else None
    all_sum([0], device)  # from here on each node has its own
    return ray.get_actor(name) if actor is None else actor


def start_teacher(
    settings: TeacherConfig,
    dtype: torch.dtype,
    device: torch.device,
    threads: int,
    log_to: Log = nullcontext,
    check: Check = nullcontext,
    name: str | None = None,
) -> Any:
    """Start a teacher actor on this worker's node, on the worker's last GPU if it has one; it ends with the worker."""
    context, gpus = ray.get_runtime_context(), _own_gpus()
    check_transport(settings, device, len(gpus))
    # The worker owns the whole bundle: the actor requests nothing of it and is given its GPU by name.
    remote: Any = ray.remote  # whose types do not know tensor transports
    actor_class = remote(enable_tensor_transport=settings.transport == "nixl")(TeacherActor)
    return actor_class.options(
        name=name,
        num_cpus=0,
        num_gpus=0,
        max_restarts=settings.max_restarts,
        max_task_retries=settings.max_restarts,
        scheduling_strategy=NodeAffinitySchedulingStrategy(context.get_node_id(), soft=False),
        runtime_env={"env_vars": {"CUDA_VISIBLE_DEVICES": gpus[-1]}} if gpus else None,
    ).remote(settings, dtype, device.type, threads, log_to, check)


def _own_gpus() -> list[str]:
    """Ids of the GPUs that Ray gave to this process."""
    return ray.get_runtime_context().get_accelerator_ids().get("GPU", [])


class TeacherActor:
    """The frozen teacher in its own process."""

    def __init__(
        self,
        settings: TeacherConfig,
        dtype: torch.dtype,
        device_type: str,
        threads: int,
        log_to: Log = nullcontext,
        check: Check = nullcontext,
    ):
        self._log = ExitStack()  # open as long as the process lives
        self._log.enter_context(log_to())
        torch.set_num_threads(threads)
        self.settings, self.dtype, self.device, self.check = settings, dtype, torch.device(device_type), check
        use_tensor_cores(self.device)

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher, loaded at the first call: what fails in an actor's start reaches no caller."""
        log.info("teacher %s; on %s, process %d", self.settings.path, self.device, os.getpid())
        self.check()  # an actor that died, and is started again, finds what is there by then
        return load_teacher(self.settings, self.dtype, self.device)

    def head(self) -> dict[str, Any]:
        """The output head: its fields, the weight as bytes."""
        head = self.teacher.output_head
        return {**vars(head), "weight_VD": to_bytes(head.weight_VD)}

    def read(self, shared: list[Any]) -> list[float]:
        """The numbers of a small tensor that the worker lends by `cuda_ipc` (`unreadable`)."""
        return make_transport("cuda_ipc").open(shared).tolist()

    def hidden_states(self, transport: TransportName, fields: dict[str, TensorBytes], shared: Any) -> TensorBytes:
        """`hidden_MD` for a request as `Transport.send` of this transport made it."""
        try:
            request = make_transport(transport).receive(fields, shared)
            request = replace(request, **send({"kv_L2CHE": request.kv_L2CHE}, self.device))
            return to_bytes(self.teacher.hidden_states(request))
        except Exception:
            log.exception("a request failed")
            raise


def _where_teachers_are() -> str:
    """What to look at where a teacher on this node does not answer."""
    return f"see `ps ax | grep TeacherActor` on {platform.node()} (T: stopped), and logs/teacher-*.jsonl"


@dataclass(frozen=True)
class Ticket:
    """Hidden states that the actor will compute, and what must not be freed before they are there."""

    hidden_MD: Future[ray.ObjectRef]
    lent: Tensor | None


class TeacherActorClient:
    """A `TeacherClient` of an actor on this worker's node."""

    def __init__(self, settings: TeacherConfig, device: torch.device, actor: Any):
        self.settings, self.device, self.actor = settings, device, actor
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="teacher")  # one: requests stay in order
        self._head = self.actor.head.remote()

    @cached_property
    def transport(self) -> TransportName:
        """How KV reaches the actor; the first use waits until the actor has started."""
        name = choose_transport(self.settings, self.device, len(_own_gpus()))
        if self.settings.transport != "auto" or name != "cuda_ipc":
            return name
        if (why := unreadable(self.actor, self.device)) is None:
            return name
        log.warning(
            "the teacher cannot read its worker's GPU memory, so KV takes the longer way through the object store "
            "(teacher.transport): %s",
            why,
        )
        return "object_store"

    @cached_property
    def output_head(self) -> OutputHead:
        """The teacher's output head; the first use waits until the actor has started."""
        fields = self._get(self._head, "the start of its teacher")
        weight_VD = from_bytes(fields["weight_VD"]).to(self.device)
        return OutputHead(weight_VD, fields["scale"], fields["softcap"])

    def submit(self, request: TeacherRequest) -> Ticket:
        """Begin to send the request by `transport`; the actor takes one after another."""
        transport = make_transport(self.transport)
        sent = transport.send(request)
        hidden_MD = self._sender.submit(lambda: self.actor.hidden_states.remote(self.transport, *sent()))
        return Ticket(hidden_MD, request.kv_L2CHE if transport.lends else None)

    def result(self, ticket: Ticket) -> Tensor:
        """Wait for the actor's `hidden_MD`, on the worker's device."""
        hidden_MD = from_bytes(self._get(ticket.hidden_MD.result(), "its teacher's answer", _ANSWER_WITHIN_S))
        return send({"hidden_MD": hidden_MD}, self.device)["hidden_MD"]

    def _get(self, ref: ray.ObjectRef, what: str, within_s: float | None = None) -> TensorBytes:
        try:
            with explained("the teacher", FOR_TRAINING), waiting(what, _where_teachers_are):
                return ray.get(ref, timeout=within_s)
        except GetTimeoutError as error:  # workers are started again, and it with them
            raise TimeoutError(f"the teacher has not answered for {within_s:.0f} s: {_where_teachers_are()}") from error
        except ActorUnschedulableError as error:  # the node takes nothing new: it leaves, as this worker begins
            raise preempted() from error
        except RayActorError as error:
            if _OWNER_DIED in str(error):  # the worker that had started it: all start again
                raise
            raise UserError(
                "the teacher actor could not be started, or died more often than teacher.max_restarts "
                f"({self.settings.max_restarts}) allows. Its last error: {error}"
            ) from error
