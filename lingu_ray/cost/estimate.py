"""The estimate of a run on a device: memory of its processes, whether they fit, what would take less, a step's time."""

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
from lingu_ray.cost.memory import Process, Run
from lingu_ray.cost.models import Models, read_models
from lingu_ray.cost.step_time import StepTime, step_time
from lingu_ray.cost.workload import RowConfig, Workload, kv_transport, workers_per_device, workload
from lingu_ray.errors import UserError
from lingu_ray.runtime.teacher.transport import choose_transport
from lingu_ray.runtime.training.precision import by_speed, times_as_fast, with_precision

LARGEST = (1024, 4096, 512)
"""Largest width, MLP width and rows of the layers that are timed: larger products reach the same rate."""
FREE = 0.1
"""Share of a device that stays free, for fragmentation."""


@dataclass(frozen=True)
class Estimate:
    """A run on a device. `config`: with precision and transport chosen; `load`: what one worker computes in a step."""

    config: Config
    row: RowConfig
    device: Device
    models: Models
    load: Workload

    @property
    def run(self) -> Run:
        """What memory and time follow from."""
        return Run(self.config, self.models, self.load)

    @cached_property
    def training(self) -> tuple[Process, ...]:
        """A worker's processes during training: the worker, its teacher, and its share of the host's memory."""
        worker = memory.worker(self.run, memory.pass_memory(self.run))
        teacher = memory.teacher(self.run)
        return tuple(process for process in (worker, teacher, memory.host(self.run)) if process is not None)

    @cached_property
    def engine(self) -> Process | None:
        """An engine of the evaluation, which runs after training; None without tasks."""
        return memory.engine(self.run)

    @property
    def needed(self) -> float:
        """The most bytes that a device must hold: a GPU, or a CPU's memory with all workers."""
        while_training = self._needed_on_gpu if self.device.is_gpu else self._needed_on_cpu
        return max(while_training, self.engines * self.engine.bytes if self.engine else 0.0)

    @property
    def engines(self) -> int:
        """Engines that a device has at one time: one on a GPU, on a CPU those of all models measured side by side."""
        settings = self.config.evaluation
        return 1 if self.device.is_gpu else (settings.replicas or 1) * settings.models_at_once

    @property
    def _needed_on_gpu(self) -> float:
        """Bytes of the processes that share a GPU; with two GPUs a worker, those of the fuller one."""
        ray = self.config.ray
        on_gpu = [process for process in self.training if process.on_device]
        if ray.gpus_per_worker == 2:
            return max(process.bytes for process in on_gpu)
        return self._total(on_gpu, workers_per_device(ray, True, ray.max_workers))

    @property
    def _needed_on_cpu(self) -> float:
        """Bytes of all workers with their teachers."""
        return self._total(self.training, self.config.ray.min_workers)

    def _total(self, processes: Iterable[Process], workers: int) -> float:
        """Bytes of these processes for so many workers of a node; with `placement=node` one teacher serves all."""
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
        """The expected time of a step."""
        return step_time(self.run, self.device)

    def changes(self) -> Iterator[tuple[str, Estimate]]:
        """Single changes of the settings that take less memory, each with the estimate of the changed run."""
        for settings in _smaller(self.config, self.device.is_gpu):
            try:
                smaller = self._changed(settings)
                takes_less = smaller.needed < self.needed
            except UserError:  # not allowed with the other settings, or cannot be estimated here
                continue
            if takes_less:
                yield " ".join(f"{key}={value}" for key, value in settings.items()), smaller

    def _changed(self, settings: dict[str, Any]) -> Estimate:
        config = changed(self.config, settings, "estimate").validate()
        models = read_models(config) if "train.lora.rank" in settings else self.models
        return estimate_of(config, self.row, self.device, models)


def estimate(config: Config, row: RowConfig, device: str | None = None) -> Estimate:
    """The estimate of a run on `device`: a name of `GPUS`, or `cpu`; None: what the run would use on this machine.

    Raises:
        UserError: a configuration cannot be read, the rows do not fit the settings, or this machine's GPU is unknown.
    """
    models = read_models(config)
    wanted = models.text.hidden_size, models.mlp_width, config.train.tokens_per_micro_batch
    sizes = tuple(min(one, most) for one, most in zip(wanted, LARGEST, strict=True))
    if device is None and config.ray.use_gpu is False:
        device = "cpu"
    found = (gpu_here() if device is None else GPUS.get(device)) or measured_cpu(*sizes)
    if config.train.precision == "auto":
        choice = "bf16" if found.is_gpu else by_speed(times_as_fast(*sizes)).precision
        config = with_precision(config, choice)
    return estimate_of(config, row, found, models)


def estimate_of(config: Config, row: RowConfig, device: Device, models: Models) -> Estimate:
    """The estimate of a run with its models read and its precision chosen (errors as `workload`)."""
    place, gpus = torch.device("cuda" if device.is_gpu else "cpu"), math.ceil(config.ray.gpus_per_worker)
    transport = choose_transport(config.teacher, place, gpus)
    config = changed(config, {"teacher.transport": transport}, "estimate").validate()
    load = workload(config, row, models.tower.tokens, config.train.precision == "bf16", device.is_gpu)
    return Estimate(config, row, device, models, load)


def _smaller(config: Config, on_gpu: bool) -> Iterator[dict[str, Any]]:
    """Changes of settings that may take less memory; first those that do not change the result."""
    train, most = config.train, config.corpus.max_length
    if train.tokens_per_micro_batch > most:
        yield {"train.tokens_per_micro_batch": max(most, train.tokens_per_micro_batch // 4)}
    if not train.gradient_checkpointing:
        yield {"train.gradient_checkpointing": True}
    if config.uses_teacher and on_gpu:
        if config.teacher.look_ahead != 0:
            yield {"teacher.look_ahead": 0}
        on_one_gpu = config.teacher.placement == "actor" and config.ray.gpus_per_worker <= 1
        if on_one_gpu and kv_transport(config) != "cuda_ipc":
            yield {"teacher.transport": "cuda_ipc"}
    if train.parallelism == "ddp" and on_gpu:
        yield {"train.parallelism": "fsdp2", "ray.num_workers": max(4, config.ray.min_workers)}
    if train.precision == "fp32":
        yield {"train.precision": "bf16"}
    if config.evaluation.tasks and config.evaluation.precision == "fp32":
        yield {"evaluation.precision": "bf16"}
    if train.lora is None:
        yield {"train.lora.rank": 16}
