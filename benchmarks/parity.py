"""Whether a step comes out the same wherever it is computed: losses and gradients of each way against another one's.

    python -m benchmarks.parity pair=Qwen2-VL-2B out=FOLDER

A pair with random weights takes one step's micro-batches forward and backward, all parameters trained. Rows:

    fp32 in_process    on the GPU, where there is one, against float32 on the CPU
    bf16 in_process    against fp32 in_process
    again              a second time: what order of sums alone makes of it (exact on CPUs)
    actor              the teacher in an actor, KV by the object store, look-ahead 1
    cuda_ipc           the same, KV opened in the worker's memory; where GPUs share it, else `left_out` says why not

`ce_off`, `kd_off`: relative difference of the losses; `gradient_off`: length of the gradients' difference over the
length of the gradient, all parameters together. Where one is above what is allowed, the exit code is 1.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from benchmarks.one_step import Teachers, add_gradients, run_config
from benchmarks.pairs import Pair, PairName, named_pair
from benchmarks.report import BenchmarkConfig, Row, publish
from lingu_ray.config.command_line import settings_alone
from lingu_ray.config.help_pages import Help
from lingu_ray.distill.student import Student
from lingu_ray.errors import UserError, run_command
from lingu_ray.runtime.cluster.connect import connect
from lingu_ray.runtime.training.step import MicroBatches

CPU = torch.device("cpu")
ALLOWED = {"fp32": (2.0**-10, 2.0**-7), "bf16": (2.0**-8, 2.0**-4), "same": (2.0**-12, 2.0**-8)}
"""How far losses and gradient may be off. fp32: products may be TF32's, of 10 bits. bf16: 8 bits; SmolVLM-256M's shapes
are off by 5e-5 and 0.016 on a CPU. same: gradients that are added up in another order, then rounded to bf16."""


class ParityConfig(BenchmarkConfig):
    """Settings of the benchmark."""

    pair: PairName = Field("SmolVLM-256M", description="shapes of the models")
    rows: PositiveInt = Field(2, description="rows of a micro-batch")
    micro_batches: PositiveInt = Field(3, description="micro-batches of the step")
    image_tokens: PositiveInt = Field(64, description="image tokens of a row")
    text_tokens: PositiveInt = Field(24, description="question tokens")
    answer_tokens: PositiveInt = Field(24, description="answer tokens")


HELP = Help("python -m benchmarks.parity [key=value ...]", __doc__, ParityConfig)


def main(arguments: list[str]) -> None:
    """Compare and publish; raises UserError where a way is further off than allowed."""
    options = settings_alone(arguments, HELP)
    connect(run_config("unused", "in_process", 0, "fp32").ray)
    task: Any = ray.remote(num_cpus=1, num_gpus=1 if torch.cuda.is_available() else 0)(_compare)
    rows, left_out = ray.get(task.remote(options.recorded))
    publish("parity", rows, options.out, options.recorded, {"left_out": left_out})
    if off := [row["way"] for row in rows if not is_close(row)]:
        raise UserError(f"{options.pair}: further off than allowed: {', '.join(off)}")


@dataclass(frozen=True)
class Outcome:
    """Losses of a step in nats, and the gradient of every parameter, on the CPU."""

    ce: float
    kd: float
    gradient: list[Tensor]


def _compare(settings: Row) -> tuple[list[Row], dict[str, str]]:
    """Each way's outcome against another one's; which way was left out, and why."""
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        steps = Steps(settings, named_pair(settings["pair"]), folder)
        exact = steps.outcome("fp32", CPU)
        rows = []
        if gpu:
            device = torch.device("cuda")
            on_gpu = steps.outcome("fp32", device)
            rows.append(compared("fp32 in_process", on_gpu, "fp32 on the CPU", exact, "fp32"))
            exact = on_gpu
        else:
            device = CPU
        here = steps.outcome("bf16", device)
        rows.append(compared("bf16 in_process", here, "fp32 in_process", exact, "bf16"))
        ways = {"again": ("in_process", "object_store"), "actor": ("actor", "object_store")}
        why_not = Teachers(folder, "bf16", device).unreadable()
        ways |= {} if why_not else {"cuda_ipc": ("actor", "cuda_ipc")}
        for way, (placement, transport) in ways.items():
            outcome = steps.outcome("bf16", device, placement, transport)
            rows.append(compared(f"bf16 {way}", outcome, "bf16 in_process", here, "same"))
        return rows, {"cuda_ipc": why_not} if why_not else {}


class Steps:
    """A student, its teacher in `folder`, and micro-batches of the settings' sizes, for steps in several ways."""

    def __init__(self, settings: Row, pair: Pair, folder: str):
        self.folder = folder
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # billions of random numbers take a CPU long
            pair.save_teacher(pair.make_teacher(), Path(folder))
            self.student = Student(pair.make_student())
        self.batches = [pair.micro_batch(settings, seed) for seed in range(settings["micro_batches"])]

    def outcome(
        self, precision: str, device: torch.device, placement: str = "in_process", transport: str = "object_store"
    ) -> Outcome:
        """Losses and gradients of a step, nothing updated."""
        model = self.student.model
        nn.Module.to(model, device)
        model.zero_grad(set_to_none=True)
        teacher = Teachers(self.folder, precision, device).client(placement, transport)
        config = run_config(self.folder, placement, int(placement == "actor"), precision, transport)
        sums = add_gradients(MicroBatches(config, self.student, teacher, device), self.batches)
        gradient = [torch.zeros(()) if p.grad is None else p.grad.to(CPU) for p in model.parameters()]
        model.zero_grad(set_to_none=True)
        return Outcome(sums.ce, sums.kd, gradient)


def is_close(row: Row) -> bool:
    """Whether a row is within what it allows."""
    losses = all(row[f"{name}_off"] <= row["losses_allowed"] for name in ("ce", "kd"))  # not so where it is nan
    return losses and row["gradient_off"] <= row["gradient_allowed"]


def compared(way: str, outcome: Outcome, against: str, other: Outcome, allowed: str) -> Row:
    """The row of a way against another; `allowed`: which of `ALLOWED`."""
    losses, gradient = ALLOWED[allowed]
    return {
        "way": way,
        "against": against,
        "ce_off": abs(outcome.ce - other.ce) / other.ce,
        "kd_off": abs(outcome.kd - other.kd) / other.kd,
        "gradient_off": _distance(outcome.gradient, other.gradient),
        "losses_allowed": losses,
        "gradient_allowed": gradient,
    }


def _distance(one: list[Tensor], other: list[Tensor]) -> float:
    """Length of the difference of two gradients over the length of the second."""
    apart = sum(float((a - b).square().sum()) for a, b in zip(one, other, strict=True))
    return (apart / sum(float(b.square().sum()) for b in other)) ** 0.5


if __name__ == "__main__":
    run_command(main)
