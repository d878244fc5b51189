"""A model's engines, one per replica, each in a Ray actor; each gets the next chunk of requests when it is free."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from lingu_ray.config import EvaluationConfig, RayConfig
from lingu_ray.errors import Interrupted, UserError, user_error
from lingu_ray.evaluation.engines.engine import Answer, Engine, GenerateRequest, Score, ScoreRequest
from lingu_ray.runtime.cluster.capacity import Need, room, uses_gpu, wait_for_nodes
from lingu_ray.runtime.cluster.connect import threads
from lingu_ray.runtime.cluster.gpus import HIDDEN, check_gpus
from lingu_ray.runtime.cluster.memory import ended_by_ray, full_node, out_of_memory
from lingu_ray.waiting import waiting

log = logging.getLogger(__name__)

Requests = Sequence[ScoreRequest] | Sequence[GenerateRequest]
Answers = list[Score] | list[Answer]

AHEAD = 2  # chunks that an engine has: one being answered, one waiting
_CURE = "lower evaluation.tokens_per_batch, or set evaluation.engine to the other one"
MAX_ENGINE_RESTARTS = 1  # for one chunk; if an engine dies at it again, the evaluation fails


@dataclass(frozen=True)
class Hardware:
    """What each replica of each model gets."""

    replicas: int
    cpus: float
    gpus: float
    threads: int

    @classmethod
    def of(cls, settings: EvaluationConfig, ray_settings: RayConfig, sharers: int = 1) -> Hardware:
        """The hardware that settings and cluster give; `sharers`: evaluations that run side by side.

        Waits for nodes that an autoscaler may start.

        Raises:
            UserError: the cluster has no room for that many replicas, or torch cannot compute on its GPUs.
        """
        one = {"CPU": ray_settings.cpus_per_worker, "GPU": 1.0}
        gpus = room(one) if uses_gpu(ray_settings) else None
        hardware = cls.share(settings, ray_settings, sharers, gpus)
        asked_by = f"evaluation.replicas={hardware.replicas} for evaluation.models_at_once={settings.models_at_once}"
        resources = {"CPU": hardware.cpus, "GPU": hardware.gpus}
        need = Need(asked_by, hardware.replicas * settings.models_at_once, resources)
        wait_for_nodes(need, ray_settings.wait_for_nodes_s)
        check_gpus(need.bundle)
        return hardware

    @classmethod
    def share(cls, settings: EvaluationConfig, ray_settings: RayConfig, sharers: int, gpus: int | None) -> Hardware:
        """One of `sharers` equal shares of a cluster's GPUs, as far as they have CPUs; None: engines compute on CPUs.

        The others may train meanwhile. Where there is less than a GPU for each model, an engine asks for as much of one
        as a worker.
        """
        models = settings.models_at_once * sharers
        replicas = settings.replicas or max(1, (gpus or 0) // models)
        each = 0.0 if gpus is None else 1.0 if gpus >= models else min(1.0, ray_settings.gpus_per_worker)
        return cls(replicas, ray_settings.cpus_per_worker, each, threads(ray_settings, replicas * models))

    def options(self) -> dict[str, Any]:
        """Options of a Ray task or actor; it runs outside the placement group that the caller may be in."""
        outside = PlacementGroupSchedulingStrategy(PlacementGroup.empty())
        environment = None if self.gpus else HIDDEN
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            "scheduling_strategy": outside,
            "runtime_env": environment,
        }


@dataclass(frozen=True)
class Chunk:
    """Items that are answered together; the requests are built when an engine is free."""

    begin: int
    requests: Callable[[], Requests]


@dataclass
class _Given:
    """A chunk that an engine is answering; `lost`: how many engines died at it."""

    chunk: Chunk
    requests: Requests
    replica: int
    lost: int = 0


class _EngineActor:
    """Holds the engine of one model, loaded at the first request, so that an error in loading reaches the caller."""

    def __init__(self, engine: str, settings: EvaluationConfig, hardware: Hardware) -> None:
        self.kind, self.settings, self.hardware = engine, settings, hardware
        self.path: str | None = None
        self.engine: Engine | None = None

    def answer(self, path: str, requests: Any) -> Answers:
        """Score or answer, by the type of the requests."""
        if path != self.path or self.engine is None:
            self.path, self.engine = path, None  # freed before the next one is loaded
            self.engine = self._load(path)
        if isinstance(requests[0], ScoreRequest):
            return self.engine.loglikelihoods(list(requests))
        return self.engine.generate(list(requests))

    def _load(self, path: str) -> Engine:
        import torch

        from lingu_ray.runtime.tracking.progress import quiet_libraries

        quiet_libraries()
        torch.set_num_threads(self.hardware.threads)
        torch.backends.cudnn.allow_tf32 = False  # PyTorch's default, by which a tower's patches are embedded
        dtype = torch.bfloat16 if self.settings.precision == "bf16" else torch.float32
        if self.kind == "vllm":
            from lingu_ray.evaluation.engines.vllm_engine import VllmEngine

            return VllmEngine(path, self.settings.tokens_per_batch, dtype, self.hardware.gpus)
        from lingu_ray.evaluation.engines.transformers_engine import TransformersEngine

        return TransformersEngine(path, self.settings.tokens_per_batch, dtype)


class Replicas:
    """Engines that serve one model after another. A context manager: at its end they are stopped."""

    def __init__(self, engine: str, settings: EvaluationConfig, hardware: Hardware) -> None:
        self.engine, self.settings, self.hardware = engine, settings, hardware
        self.name, self.path = "", Path()
        self._engines: list[Any] = []
        self._starting: dict[Any, int] = {}  # a reference that is there when the replica's engine runs, or has died

    def __enter__(self) -> Replicas:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engines at once; `answers` in another thread raises `Interrupted`."""
        engines, self._engines = self._engines, []
        for engine in engines:
            ray.kill(engine)

    def serve(self, name: str, path: Path) -> None:
        """Serve this model from now on. vLLM's engines are restarted for it: vLLM does not free all memory."""
        if self.engine == "vllm":
            self.close()
        self.name, self.path = name, path
        if not self._engines:
            self._starting = {}
            self._engines = [self._start(replica) for replica in range(self.hardware.replicas)]

    def answers(self, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, Answers]]:
        """Yield each chunk with its answers, in the order in which they are ready.

        Only engines that run get any: others may wait for GPUs that are taken.

        Raises:
            UserError: the model cannot be loaded or cannot take a request, or its engine dies at a chunk repeatedly.
            Interrupted: the engines were closed.
        """
        left = iter(chunks)
        again: deque[_Given] = deque()
        given: dict[Any, _Given] = {}
        running = [replica for replica in range(len(self._engines)) if replica not in self._starting.values()]
        free = deque(running * AHEAD)
        while True:
            engines = self._engines
            if not engines:
                raise Interrupted("the evaluation was stopped")
            while free and (next_one := self._next(again, left, free[0])) is not None:
                next_one.replica = free.popleft()
                given[engines[next_one.replica].answer.remote(str(self.path), next_one.requests)] = next_one
            if free and not given:
                return
            with waiting(f"answers of model {self.name}", self._where_to_look):
                (ready,), _ = ray.wait([*given, *self._starting], num_returns=1)
            if (replica := self._starting.pop(ready, None)) is not None:
                free.extend([replica] * AHEAD)  # one that has died is found out by its first chunk
                continue
            done = given.pop(ready)
            try:
                answers = ray.get(ready)
            except RayTaskError as error:
                raise self._explained(error) from error
            except RayError as error:  # of no request: the engine has died, or was ended, or its node is lost
                lost = [done, *(one for one in given.values() if one.replica == done.replica)]
                given = {ref: one for ref, one in given.items() if one.replica != done.replica}
                free = deque(replica for replica in free if replica != done.replica)
                if self._engines:
                    self._revive(done, error)
                    again.extend(lost)
                continue
            free.append(done.replica)
            yield done.chunk, answers

    def _where_to_look(self) -> str:
        """Of engines that do not answer."""
        if self._starting:
            return f"{len(self._starting)} of its {len(self._engines)} engines have not started: see `ray status`"
        return f"its {self.engine} engines ({len(self._engines)}, ray::_EngineActor) compute, load the model, or hang"

    @staticmethod
    def _next(again: deque[_Given], left: Iterator[Chunk], replica: int) -> _Given | None:
        if again:
            return again.popleft()
        chunk = next(left, None)
        return None if chunk is None else _Given(chunk, chunk.requests(), replica)

    def _start(self, replica: int) -> Any:
        actor: Any = ray.remote(_EngineActor)
        engine = actor.options(**self.hardware.options()).remote(self.engine, self.settings, self.hardware)
        self._starting[engine.__ray_ready__.remote()] = replica
        return engine

    def _revive(self, given: _Given, error: RayError) -> None:
        """Replace an engine that died; its chunks are asked again."""
        given.lost += 1
        full = full_node(error)
        if given.lost > MAX_ENGINE_RESTARTS:
            if full is not None:
                raise ended_by_ray(f"model {self.name} ({self.path}): its {self.engine} engine", _CURE, full) from error
            raise UserError(
                f"model {self.name} ({self.path}): its {self.engine} engine died {given.lost} times at the items from "
                f"{given.chunk.begin + 1} on (out of memory?): {_CURE}. {error}"
            ) from error
        why = "died" if full is None else f"was ended by Ray, since its node ran out of memory ({full})"
        log.warning("model %s: its %s engine %s; a new one is started", self.name, self.engine, why)
        self._engines[given.replica] = self._start(given.replica)

    def _explained(self, error: RayTaskError) -> Exception:
        if (cause := user_error(error)) is not None:
            return UserError(f"model {self.name}: {cause}")
        if found := out_of_memory(error):
            return UserError(
                f"model {self.name} ({self.path}): its {self.engine} engine ran out of GPU memory: {_CURE}. {found}"
            )
        return error
