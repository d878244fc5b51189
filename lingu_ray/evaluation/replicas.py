"""A model's engines, one per replica, each in a Ray actor; each gets the next chunk of requests when it is free."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from lingu_ray.config import EvaluationConfig, RayConfig
from lingu_ray.errors import Interrupted, UserError
from lingu_ray.evaluation.engines.engine import Engine, GenerateRequest, Score, ScoreRequest
from lingu_ray.runtime.capacity import Need, uses_gpu, wait_for_nodes
from lingu_ray.runtime.cluster import threads

log = logging.getLogger(__name__)

Requests = Sequence[ScoreRequest] | Sequence[GenerateRequest]
Answers = list[Score] | list[str]

AHEAD = 2  # chunks that an engine has: one being answered, one waiting
MAX_ENGINE_RESTARTS = 1  # for one chunk; if an engine dies at it again, the evaluation fails


@dataclass(frozen=True)
class Hardware:
    """What each replica of each model gets."""

    replicas: int
    cpus: float
    gpus: int
    threads: int

    @classmethod
    def of(cls, settings: EvaluationConfig, ray_settings: RayConfig, sharers: int = 1) -> Hardware:
        """The hardware that settings and cluster give; `sharers`: evaluations that run side by side.

        Waits for nodes that an autoscaler may start.

        Raises:
            UserError: the cluster has no room for that many replicas.
        """
        total = ray.cluster_resources()
        gpus = 1 if uses_gpu(ray_settings) else 0
        replicas = settings.replicas or max(1, int(total.get("GPU", 0)) // settings.models_at_once if gpus else 1)
        engines = replicas * settings.models_at_once
        hardware = cls(replicas, ray_settings.cpus_per_worker, gpus, threads(ray_settings, engines * sharers))
        asked_by = f"evaluation.replicas={replicas} for evaluation.models_at_once={settings.models_at_once}"
        resources = (("CPU", hardware.cpus), ("GPU", float(gpus)))
        wait_for_nodes(Need(asked_by, engines, resources), ray_settings.wait_for_nodes_s)
        return hardware

    def options(self) -> dict[str, Any]:
        """Options of a Ray task or actor; it runs outside the placement group that the caller may be in."""
        outside = PlacementGroupSchedulingStrategy(PlacementGroup.empty())
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, "scheduling_strategy": outside}


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

    def __init__(self, engine: str, tokens_per_batch: int, torch_threads: int) -> None:
        self.kind, self.tokens_per_batch, self.threads = engine, tokens_per_batch, torch_threads
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

        from lingu_ray.runtime.progress import quiet_libraries

        quiet_libraries()
        torch.set_num_threads(self.threads)
        if self.kind == "vllm":
            from lingu_ray.evaluation.engines.vllm_engine import VllmEngine

            return VllmEngine(path, self.tokens_per_batch)
        from lingu_ray.evaluation.engines.transformers_engine import TransformersEngine

        return TransformersEngine(path, self.tokens_per_batch)


class Replicas:
    """Engines that serve one model after another. A context manager: at its end they are stopped."""

    def __init__(self, engine: str, settings: EvaluationConfig, hardware: Hardware) -> None:
        self.engine, self.settings, self.hardware = engine, settings, hardware
        self.name, self.path = "", Path()
        self._engines: list[Any] = []

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
        self._engines = self._engines or [self._start() for _ in range(self.hardware.replicas)]

    def answers(self, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, Answers]]:
        """Yield each chunk with its answers, in the order in which they are ready.

        Raises:
            UserError: the model cannot be loaded or cannot take a request, or its engine dies at a chunk repeatedly.
            Interrupted: the engines were closed.
        """
        waiting = iter(chunks)
        again: deque[_Given] = deque()
        given: dict[Any, _Given] = {}
        free = deque(replica for _ in range(AHEAD) for replica in range(len(self._engines)))
        while True:
            while free and (next_one := self._next(again, waiting, free[0])) is not None:
                next_one.replica = free.popleft()
                engine = self._engines[next_one.replica]
                given[engine.answer.remote(str(self.path), next_one.requests)] = next_one
            if not given:
                return
            (ready,), _ = ray.wait(list(given), num_returns=1)
            done = given.pop(ready)
            try:
                answers = ray.get(ready)
            except RayActorError as error:
                lost = [done, *(one for one in given.values() if one.replica == done.replica)]
                given = {ref: one for ref, one in given.items() if one.replica != done.replica}
                if not self._engines:
                    raise Interrupted("the evaluation was stopped") from error
                self._revive(done, error)
                again.extend(lost)
                free.extend(one.replica for one in lost)
                continue
            except RayTaskError as error:
                raise self._explained(error) from error
            free.append(done.replica)
            yield done.chunk, answers

    @staticmethod
    def _next(again: deque[_Given], waiting: Iterator[Chunk], replica: int) -> _Given | None:
        if again:
            return again.popleft()
        chunk = next(waiting, None)
        return None if chunk is None else _Given(chunk, chunk.requests(), replica)

    def _start(self) -> Any:
        actor: Any = ray.remote(_EngineActor)
        return actor.options(**self.hardware.options()).remote(
            self.engine, self.settings.tokens_per_batch, self.hardware.threads
        )

    def _revive(self, given: _Given, error: RayActorError) -> None:
        """Replace an engine that died; its chunks are asked again."""
        given.lost += 1
        if given.lost > MAX_ENGINE_RESTARTS:
            raise UserError(
                f"model {self.name} ({self.path}): its {self.engine} engine died {given.lost} times at the items from "
                f"{given.chunk.begin + 1} on (out of memory?): lower evaluation.tokens_per_batch, or set "
                f"evaluation.engine to the other one. {error}"
            ) from error
        log.warning("model %s: its %s engine died; a new one is started", self.name, self.engine)
        self._engines[given.replica] = self._start()

    def _explained(self, error: RayTaskError) -> Exception:
        cause = error.cause
        return UserError(f"model {self.name}: {cause}") if isinstance(cause, UserError) else error
