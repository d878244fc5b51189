"""Preparing a student for training: adapters, checkpointing, sharding, frozen weights, compiled layers, device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from lingu_ray.config import TrainConfig
from lingu_ray.distill.lora import add_adapters
from lingu_ray.distill.student import Student
from lingu_ray.runtime.training.frozen import hold_in_bf16
from lingu_ray.runtime.training.optimizer import freeze
from lingu_ray.runtime.training.sharding import shard, unsharded


def prepare(student: Student, settings: TrainConfig, device: torch.device, seed: int) -> None:
    """Prepare the student in place, as the settings say, and move it to `device`; `seed`: of the adapters."""
    student.model.train()
    if settings.gradient_checkpointing:
        student.model.gradient_checkpointing_enable({"use_reentrant": False})
    if settings.lora is not None:
        add_adapters(student.decoder, **dict(settings.lora), seed=seed)
    if settings.parallelism == "fsdp2":
        shard(student, device, bf16=settings.precision == "bf16")
    freeze(student, settings)
    if settings.precision == "bf16":
        hold_in_bf16(student.model)
    if settings.compile:
        for layer in student.layers:
            layer.compile(dynamic=True)
    nn.Module.to(student.model, device)


@contextmanager
def between_steps(student: Student, autocast: AbstractContextManager[None]) -> Iterator[None]:
    """Let each worker validate and generate any number of times, in `autocast`; all workers must enter it together.

    Layers run eagerly: compiled, they would be compiled again for each mode, and for each length of a growing cache.
    """
    with unsharded(student.decoder), torch.compiler.set_stance("force_eager"), autocast:
        yield
