"""Memory growth of a long run on a CPU: plain fine-tuning in bf16 on rows of ever new lengths.

    python -m benchmarks.cpu_memory out=docs/performance

oneDNN, PyTorch's library for CPUs, caches a kernel for each shape of a matrix product. Two processes run side by side
on a thread each, with SmolLM2-135M's shapes and the same rows of random lengths:

    default  oneDNN as it is: 1024 kernels in each of its two caches
    ours     as in training: `lingu_ray.runtime.cluster.connect` asks for fewer

    resident_GiB_early, resident_GiB  the process's memory after the second step, and after the last one
    ratio_to_default                  a step's processor time over that of the same step by `default`
"""

from __future__ import annotations

import os
import random
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from pydantic import Field, PositiveInt
from tqdm import tqdm

from benchmarks.report import BenchmarkConfig, Row, Timing, beside, processor_seconds, publish
from benchmarks.text_training import TextTraining, text_batches
from lingu_ray.config.command_line import settings_alone
from lingu_ray.config.help_pages import Help
from lingu_ray.errors import run_command
from lingu_ray.report.plots import SOURCE_COLORS, canvas
from lingu_ray.runtime.cluster.connect import KERNEL_CACHES

WAYS = {"default": "1024", "ours": None}
"""Kernels that each cache may have; None: as many as training asks for."""
WARM_UP = 2  # steps until moments and buffers are allocated


class CpuMemoryConfig(BenchmarkConfig):
    """Settings of the benchmark."""

    steps: int = Field(40, gt=WARM_UP, description="steps of each process")
    rows: PositiveInt = Field(24, description="rows of a step")
    shortest: PositiveInt = Field(16, description="tokens of the shortest row")
    longest: PositiveInt = Field(160, description="tokens of the longest row")
    layers: PositiveInt = Field(30, description="decoder layers; SmolLM2-135M has 30")
    hidden: PositiveInt = Field(576, multiple_of=192, description="decoder width")


HELP = Help("python -m benchmarks.cpu_memory [key=value ...]", __doc__, CpuMemoryConfig)


class Step(NamedTuple):
    """A step's processor time, and the process's memory after it."""

    seconds: float
    gib: float


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    options = settings_alone(arguments, HELP)
    steps = _side_by_side(options.recorded)
    resident = {way: [step.gib for step in of_way] for way, of_way in steps.items()}
    timings = {way: Timing(tuple(step.seconds for step in of_way[WARM_UP:])) for way, of_way in steps.items()}
    rows = [
        {
            "way": way,
            "resident_GiB_early": resident[way][WARM_UP - 1],
            "resident_GiB": resident[way][-1],
            **beside(timings[way], timings["default"], "default"),
        }
        for way in WAYS
    ]
    publish("cpu_memory", rows, options.out, options.recorded, {"resident_GiB": resident})
    if options.out is not None:
        plot(resident, options.out / "cpu_memory.png")


def plot(resident: dict[str, list[float]], path: Path) -> None:
    """Memory over the steps, a line for each way."""
    with canvas(path, (6, 3.6)) as figure:
        axis = figure.subplots()
        for color, (way, gib) in zip(SOURCE_COLORS, resident.items(), strict=False):
            axis.plot(range(1, len(gib) + 1), gib, color=color, label=way)
        axis.set_title("Memory of a training on a CPU", loc="left")
        axis.set(xlabel="steps", ylabel="GiB", ylim=(0, None))
        axis.legend(loc="lower right")


def _side_by_side(settings: Row) -> dict[str, list[Step]]:
    """The steps of each way, at the same time in a process each, since oneDNN reads the sizes of its caches once."""
    for name in KERNEL_CACHES:
        os.environ.pop(name, None)  # so that new processes set training's own sizes
    with ProcessPoolExecutor(len(WAYS), get_context("spawn"), max_tasks_per_child=1) as pool:
        return dict(zip(WAYS, pool.map(_train, WAYS, repeat(settings)), strict=True))


def _train(way: str, settings: Row) -> list[Step]:
    """All steps of one process."""
    if (kernels := WAYS[way]) is not None:
        os.environ.update(dict.fromkeys(KERNEL_CACHES, kernels))
    torch.set_num_threads(1)
    training = TextTraining(settings, "bf16")
    lengths = random.Random(0)

    def step(number: int) -> None:
        of_row = (lengths.randint(settings["shortest"], settings["longest"]) for _ in range(settings["rows"]))
        training.step(text_batches(of_row, most=2048, first=number * settings["rows"]))

    taken = []
    for number in tqdm(range(settings["steps"]), unit="step", desc=way, position=list(WAYS).index(way)):
        seconds = processor_seconds(lambda number=number: step(number))
        taken.append(Step(seconds, psutil.Process().memory_info().rss / 2**30))
    return taken


if __name__ == "__main__":
    run_command(main)
