"""Shared by benchmarks of a training step: a run's settings, its teachers, and its passes forward and backward."""

from __future__ import annotations

from typing import Any

import torch

from lingu_ray.config import Config
from lingu_ray.corpus.batch import MicroBatch
from lingu_ray.runtime.teacher.teachers import make_teacher
from lingu_ray.runtime.teacher.transport import unreadable
from lingu_ray.runtime.training.step import MicroBatches, StepSums


def run_config(
    teacher: str, placement: str, look_ahead: int, precision: str, transport: str = "object_store", of_a_call: int = 1
) -> Config:
    """Settings of a run whose student the benchmark makes itself."""
    return Config.model_validate(
        {
            "name": "benchmark",
            "student": {"path": "made here"},
            "teacher": {
                "path": teacher,
                "placement": placement,
                "look_ahead": look_ahead,
                "transport": transport,
                "micro_batches_per_call": of_a_call,
            },
            "corpus": {"sources": [{"name": "images", "format": "text", "path": "made here", "language_heavy": True}]},
            "train": {"precision": precision},
        }
    )


def add_gradients(micro_batches: MicroBatches, batches: list[MicroBatch]) -> StepSums:
    """Run a step's micro-batches forward and backward, with the loss weights at the start of a run; updates nothing."""
    plans = [micro_batches.plan(batch) for batch in batches]
    return micro_batches.run(batches, plans, micro_batches.weights(0.0, batches, plans))


class Teachers:
    """Clients of the teacher in a folder, made on first use."""

    def __init__(self, folder: str, precision: str, device: torch.device):
        self.folder, self.precision, self.device = folder, precision, device
        self._clients: dict[tuple[str, str], Any] = {}

    def client(self, placement: str, transport: str) -> Any:
        """The teacher in this process, or in an actor, with KV sent by `transport`."""
        if (placement, transport) not in self._clients:
            settings = run_config(self.folder, placement, 0, self.precision, transport).teacher
            dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
            self._clients[placement, transport] = make_teacher(settings, dtype, self.device, torch.get_num_threads())
        return self._clients[placement, transport]

    def unreadable(self) -> str | None:
        """Why a teacher in an actor cannot read this process's GPU memory (`cuda_ipc`); None if it can."""
        client = self.client("actor", "object_store")
        return unreadable(client.actor, client.device)

    @property
    def bytes_here(self) -> int:
        """Bytes of the weights of the teacher in this process."""
        here = [client for (placement, _), client in self._clients.items() if placement == "in_process"]
        return sum(weight.nbytes for client in here for weight in client.model.parameters())
