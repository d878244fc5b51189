"""Preparing a student for training: adapters, checkpointing, sharding, frozen weights, compiled layers, device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from lingu_ray.config import TrainConfig
from lingu_ray.distill.lora import add_adapters
from lingu_ray.distill.student import Student
from lingu_ray.runtime.training.frozen import frozen_in_linear, place, seen_as_float32
from lingu_ray.runtime.training.optimizer import freeze
from lingu_ray.runtime.training.sharding import shard, unsharded


def prepare(student: Student, settings: TrainConfig, device: torch.device, seed: int) -> None:
    """Prepare the student in place, as the settings say, and move it to `device`; `seed`: of the adapters.

    Its weights may be of any dtype.
    """
    student.model.train()
    if settings.gradient_checkpointing:
        student.model.gradient_checkpointing_enable({"use_reentrant": False})
    if settings.lora is not None:
        with seen_as_float32(student.decoder):  # adapters are made in the dtype of their layers
            add_adapters(student.decoder, **dict(settings.lora), seed=seed)
    freeze(student, settings)
    bf16 = settings.precision == "bf16"
    if settings.parallelism == "fsdp2":
        shard(student, device, bf16)
    place(student.model, device, frozen_in_linear(student.model) if bf16 else [])
    if settings.compile:
        for layer in student.layers:
            layer.compile(dynamic=True)


@contextmanager
def between_steps(student: Student, autocast: AbstractContextManager[None]) -> Iterator[None]:
    """Let each worker validate and generate any number of times, in `autocast`; all workers must enter it together.

    Layers run eagerly: compiled, they would be compiled again for each mode, and for each length of a growing cache.
    """
    with unsharded(student.decoder), torch.compiler.set_stance("force_eager"), autocast:
        yield
