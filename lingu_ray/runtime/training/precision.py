"""`train.precision: auto`: fp32 or bf16, chosen once for all runs of a command, by what is faster where they train.

On a GPU bf16 is taken where the GPU computes in it. A CPU with units for bf16 (AMX, AVX-512) is up to twice as fast in
it, another one slower than in fp32: so both are timed, in a task on a node of the cluster with a worker's resources.
The choice is part of the run as if it had been set: settings that are recorded have it, and a resumed run, controls
and trials of a sweep keep it. Why it was made is in the log, and in `environment.json`, which MLflow, report and model
card show.
"""

from __future__ import annotations

import logging
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
from torch import nn

from lingu_ray.config import Config
from lingu_ray.config.command_line import load_yaml
from lingu_ray.distill.decoder import inner_width
from lingu_ray.runtime.cluster.capacity import uses_gpu, wait_for_nodes, worker_resources, workers
from lingu_ray.runtime.cluster.gpus import check_gpus, computes_in_bf16
from lingu_ray.runtime.models.load import load_teacher_config
from lingu_ray.runtime.resume import trained_steps
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.tracking.environment import PRECISION, read_environment, record_environment
from lingu_ray.waiting import RAY_STATUS, waiting

FASTER = 1.2
"""Times that bf16 must be as fast as fp32 on a CPU to be chosen."""
_LARGEST = (1024, 2048, 256)
"""Width, inner width and rows of the layers that are timed at most: larger products take as long for each number."""
_TIME_S, _FEWEST = 0.4, 3

log = logging.getLogger(__name__)


class Choice(NamedTuple):
    """A precision, and why it was chosen."""

    precision: str
    why: str

    def __str__(self) -> str:
        return f"{self.precision}: {self.why}"


def use_tensor_cores(device: torch.device) -> None:
    """On a GPU let this process multiply float32 matrices as TF32 (10 bits of mantissa), several times as fast."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def with_precision(config: Config, precision: str) -> Config:
    """The settings with this precision."""
    return config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})


def is_open(config: Config) -> bool:
    """Whether the precision is still to be chosen."""
    return config.train.precision == "auto"


def as_started(config: Config, folder: RunFolder) -> Config:
    """The settings with the precision that the run in the folder was trained in so far, where they leave it open."""
    if not is_open(config) or not folder.config.exists() or not trained_steps(folder):
        return config
    precision = load_yaml(folder.config).train.precision
    if precision == "auto":
        return config
    log.info("%s: train.precision=auto: %s, as the run was started", folder.place, precision)
    return with_precision(config, precision)


def settled(config: Config, folder: Path) -> Config:
    """The settings of what trains below a folder with one precision for all, chosen and recorded at the first call.

    Ray must be running (errors as `choose`).
    """
    if not is_open(config):
        return config
    if (earlier := read_environment(folder).get(PRECISION)) is None:
        choice = choose(config)
        record_environment(folder, str(choice))
        return with_precision(config, choice.precision)
    return with_precision(config, "bf16" if earlier.startswith("bf16") else "fp32")


def choose(config: Config) -> Choice:
    """Choose the precision of runs with these settings; Ray must be running.

    Raises:
        UserError: the teacher's configuration cannot be loaded; the cluster has no room for a worker, or torch cannot
            compute on its GPUs.
    """
    settings, use_gpu = config.ray, uses_gpu(config.ray)
    text = load_teacher_config(config.teacher)
    shape = (text.hidden_size, inner_width(text), config.train.tokens_per_micro_batch)
    timed = [min(one, most) for one, most in zip(shape, _LARGEST, strict=True)]
    wait_for_nodes(workers(settings, use_gpu), settings.wait_for_nodes_s)
    wanted = worker_resources(settings, use_gpu)
    check_gpus(wanted)
    remote: Any = ray.remote(max_calls=1)(_choose_here)  # it sets its process's threads
    task = remote.options(num_cpus=wanted["CPU"], num_gpus=wanted.get("GPU", 0))
    with waiting("a worker's choice of precision", RAY_STATUS):
        choice = ray.get(task.remote(use_gpu, *timed))
    log.info("train.precision=auto: %s", choice)
    return choice


def _choose_here(use_gpu: bool, width: int, inner: int, rows: int) -> Choice:
    """The choice of a worker on this node, for a decoder of these sizes."""
    if use_gpu:
        name = torch.cuda.get_device_name()
        if computes_in_bf16(torch.device("cuda")):
            return Choice("bf16", f"{name} computes in it")
        return Choice("fp32", f"{name} does not compute in bf16")
    # Of several threads processor time has waiting in it: the ratio is 1.1 at one call and 2 at the next. With one
    # thread calls differ by some 5 %.
    torch.set_num_threads(1)
    return by_speed(times_as_fast(width, inner, rows))


def by_speed(ratio: float) -> Choice:
    """The choice on a CPU where bf16 is so many times as fast as fp32."""
    why = f"layers of the decoder's shape are {ratio:.2f} times as fast in bf16 as in fp32 on this CPU"
    return Choice("bf16" if ratio >= FASTER else "fp32", why)


def times_as_fast(width: int, inner: int, rows: int) -> float:
    """How many times as fast bf16 autocast is as fp32: forward and backward pass of two layers, median of several.

    Of processor time, to which other work on the machine adds little. Takes half a second.
    """
    layers = nn.Sequential(nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False))
    input_ND = torch.randn(rows, width)

    def seconds(bf16: bool) -> float:
        begin = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output_ND = layers(input_ND)
        output_ND.float().sum().backward()
        return time.process_time() - begin

    ratios: list[float] = []
    end = time.perf_counter() + _TIME_S
    seconds(False), seconds(True)  # the first ones set up kernels
    while len(ratios) < _FEWEST or time.perf_counter() < end:
        ratios.append(seconds(False) / seconds(True))
    return statistics.median(ratios)
