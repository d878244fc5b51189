"""The whole estimate of a run on a device: its processes, whether they fit, what would make them, and a step's time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from lingu_ray.config import Config
from lingu_ray.config.settings import changed
from lingu_ray.cost import memory
from lingu_ray.cost.devices import GPUS, Device, gpu_here, measured_cpu
from lingu_ray.cost.memory import Process
from lingu_ray.cost.models import Models, read_models
from lingu_ray.cost.step_time import StepTime, step_time
from lingu_ray.cost.workload import RowConfig, Workload, sharing, travels_by, workload
from lingu_ray.errors import UserError
from lingu_ray.runtime.teacher.transport import choose_transport
from lingu_ray.runtime.training.precision import by_speed, times_as_fast, with_precision

LARGEST = (1024, 4096, 512)
"""Width, inner width and rows of the layers that are timed at most: larger products take as long for each number."""
FREE = 0.1
"""Share of a device that is left for what allocators lose between tensors."""


@dataclass(frozen=True)
class Estimate:
    """A run on a device. `config`: with its precision and transport chosen; `load`: what a worker computes."""

    config: Config
    row: RowConfig
    device: Device
    models: Models
    load: Workload

    @cached_property
    def training(self) -> tuple[Process, ...]:
        """The processes of a worker while it trains, its share of the host's memory last."""
        parts = self.config, self.models, self.load
        worker = memory.worker(*parts, memory.passes_of(*parts))
        teacher = memory.teacher(*parts)
        return tuple(process for process in (worker, teacher, memory.host(*parts)) if process is not None)

    @cached_property
    def engine(self) -> Process | None:
        """An engine of the evaluation, which runs when training has ended."""
        return memory.engine(self.config, self.models, self.load)

    @property
    def needed(self) -> float:
        """The most that a device must hold: bytes of a GPU, or on a CPU of a node with all workers."""
        while_training = self._of_a_gpu if self.device.is_gpu else self._of_a_node
        return max(while_training, self.engine.bytes if self.engine else 0.0)

    @property
    def _of_a_gpu(self) -> float:
        """Bytes of the processes that share a GPU where most workers train; of two GPUs a worker the fuller one."""
        ray = self.config.ray
        of_worker = [process for process in self.training if process.on_device]
        if ray.gpus_per_worker == 2:
            return max(process.bytes for process in of_worker)
        return self._together(of_worker, sharing(ray, True, ray.max_workers))

    @property
    def _of_a_node(self) -> float:
        """Bytes of all workers, with the teachers that they have."""
        return self._together(self.training, self.config.ray.min_workers)

    def _together(self, processes: Iterable[Process], workers: int) -> float:
        """Bytes of these processes of so many workers of a node; one teacher may serve all of them."""
        once = {"teacher"} if self.config.teacher.placement == "node" else set()
        return sum(process.bytes * (1 if process.name in once else workers) for process in processes)

    @property
    def room(self) -> float:
        """Bytes of the device that may be used."""
        return self.device.memory * (1 - FREE)

    @property
    def fits(self) -> bool:
        """Whether the device holds it."""
        return self.needed <= self.room

    @cached_property
    def time(self) -> StepTime:
        """A step to expect."""
        return step_time(self.config, self.models, self.load, self.device)

    def changes(self) -> Iterator[tuple[str, Estimate]]:
        """Settings that take less memory, one at a time, with the estimate of a run that differs in it alone."""
        for settings in _smaller(self.config, self.device.is_gpu):
            try:
                smaller = self._changed(settings)
                takes_less = smaller.needed < self.needed
            except UserError:  # not allowed beside the others, or not to be estimated here
                continue
            if takes_less:
                yield " ".join(f"{key}={value}" for key, value in settings.items()), smaller

    def _changed(self, settings: dict[str, Any]) -> Estimate:
        config = changed(self.config, settings, "estimate").validate()
        models = read_models(config) if "train.lora.rank" in settings else self.models
        return estimate_of(config, self.row, self.device, models)


def estimate(config: Config, row: RowConfig, device: str | None = None) -> Estimate:
    """The estimate of a run on a device of the table, or `cpu`; None: what the run would use of this machine.

    Raises:
        UserError: a configuration cannot be had, the rows do not fit the settings, or this machine's GPU is unknown.
    """
    models = read_models(config)
    wanted = models.text.hidden_size, models.inner, config.train.tokens_per_micro_batch
    sizes = tuple(min(one, most) for one, most in zip(wanted, LARGEST, strict=True))
    if device is None and config.ray.use_gpu is False:
        device = "cpu"
    found = (gpu_here() if device is None else GPUS.get(device)) or measured_cpu(*sizes)
    if config.train.precision == "auto":
        choice = "bf16" if found.is_gpu else by_speed(times_as_fast(*sizes)).precision
        config = with_precision(config, choice)
    return estimate_of(config, row, found, models)


def estimate_of(config: Config, row: RowConfig, device: Device, models: Models) -> Estimate:
    """The estimate of a run whose models are read, and its precision chosen (errors as `workload`)."""
    place, gpus = torch.device("cuda" if device.is_gpu else "cpu"), math.ceil(config.ray.gpus_per_worker)
    transport = choose_transport(config.teacher, place, gpus)
    config = changed(config, {"teacher.transport": transport}, "estimate").validate()
    load = workload(config, row, models.tower.tokens, config.train.precision == "bf16", device.is_gpu)
    return Estimate(config, row, device, models, load)


def _smaller(config: Config, on_gpu: bool) -> Iterator[dict[str, Any]]:
    """Settings that would take less memory, those that change no result first."""
    train, most = config.train, config.corpus.max_length
    if train.tokens_per_micro_batch > most:
        yield {"train.tokens_per_micro_batch": max(most, train.tokens_per_micro_batch // 4)}
    if not train.gradient_checkpointing:
        yield {"train.gradient_checkpointing": True}
    if config.uses_teacher and on_gpu:
        if config.teacher.look_ahead != 0:
            yield {"teacher.look_ahead": 0}
        on_one_gpu = config.teacher.placement == "actor" and config.ray.gpus_per_worker <= 1
        if on_one_gpu and travels_by(config) != "cuda_ipc":
            yield {"teacher.transport": "cuda_ipc"}
    if train.parallelism == "ddp" and on_gpu:
        yield {"train.parallelism": "fsdp2", "ray.num_workers": max(4, config.ray.min_workers)}
    if train.precision == "fp32":
        yield {"train.precision": "bf16"}
    if config.evaluation.tasks and config.evaluation.precision == "fp32":
        yield {"evaluation.precision": "bf16"}
    if train.lora is None:
        yield {"train.lora.rank": 16}
