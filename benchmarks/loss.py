"""The fused loss against those of other libraries: time, memory and value of a forward and backward pass.

    python -m benchmarks.loss                                              small: a minute or two
    python -m benchmarks.loss tokens=64,4096 vocabulary=49152 out=FOLDER

All compute ½ · mean CE + ½ · mean JSD(β = ½) at τ = 1, from hidden states and output heads of student and teacher, and
the gradients of the student's. At β = ½ all definitions of the divergence agree; the weights are converted so:

    naive         torch alone: all logits, log-probabilities and their gradients at once
    liger         LigerFusedLinearJSDLoss, weight_hard_loss = weight_soft_loss = ½, compiled as is its default;
                  it divides by tokens itself
    liger_triton  LigerFusedLinearJSD, on GPUs only; it has no cross-entropy, so it does less: ½ · mean JSD alone
    trl_gkd       GKDTrainer.generalized_jsd_loss on all logits ("batchmean" divides by tokens) + torch's cross-entropy
    trl_fused     TRL's ChunkedDivergenceFunction, from hidden states; ½ · mean JSD alone, too
    ours          lingu_ray's ce_kd_loss with ce_N = kd_M = ½ / tokens

Liger and TRL are optional: what is not installed is left out, and a line says so.

Columns: `ms`, median and quartiles of rounds in turning order; `times ours`, the median of the rounds' ratios;
`MiB`, the peak of a second pass above its inputs, gradients included (CPU: of a fresh process, Linux only; GPU: of the
allocator); `of naive`, that peak over the naive one's; `off`, relative difference of the loss to the naive one. A loss
that runs out of GPU memory, or fails, has a row that says so, without numbers; if one fails the exit code is 1.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor

from benchmarks.report import (
    BenchmarkConfig,
    Row,
    Timing,
    if_it_fits,
    measure,
    plot_bars,
    publish,
    ratio,
    require_all,
    run_or_reason,
)
from benchmarks.resident import Growth
from lingu_ray.config import Several
from lingu_ray.config.command_line import settings_alone
from lingu_ray.config.help_pages import Help
from lingu_ray.distill.divergence import divergence_of
from lingu_ray.distill.head import OutputHead
from lingu_ray.distill.loss import LossScales, TeacherOutput, ce_kd_loss
from lingu_ray.errors import run_command

KD_ALONE = ("trl_fused", "liger_triton")
PACKAGES = {"liger": "liger_kernel", "liger_triton": "liger_kernel", "trl_gkd": "trl", "trl_fused": "trl"}


class LossConfig(BenchmarkConfig):
    """Settings of the benchmark."""

    repeats: PositiveInt = Field(5, description="rounds of timing")
    tokens: Several[PositiveInt] = Field((256, 1024), description="supervised tokens")
    vocabulary: Several[PositiveInt] = Field((8192,), description="ids")
    width: PositiveInt = Field(576, description="hidden width; SmolLM2-135M has 576")
    dtype: Literal["float32", "bfloat16"] | None = Field(None, description="null: bfloat16 on a GPU, else float32")


HELP = Help("python -m benchmarks.loss [key=value ...]", __doc__, LossConfig)


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    options = settings_alone(arguments, HELP)
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, options.dtype or ("bfloat16" if device == "cuda" else "float32"))
    names = available(device)
    shapes = [Shape(n, v, options.width, dtype, device) for v in options.vocabulary for n in options.tokens]
    rows = [row for shape in shapes for row in compare(shape, names, options.repeats)]
    settings = options.recorded | {"dtype": str(dtype), "divergence": "jsd(0.5)"}
    publish("loss", rows, options.out, settings, {"left_out": [name for name in MAKERS if name not in names]})
    if options.out is not None:
        plot(rows, shapes, names, options.out)
    require_all({f"{row['loss']} of {row['tokens']} × {row['vocabulary']}": row["quartiles, ms"] for row in rows})


@dataclass(frozen=True)
class Shape:
    """N tokens, V ids, D hidden width; where and in which dtype."""

    tokens: int
    vocabulary: int
    width: int
    dtype: torch.dtype
    device: str

    def __str__(self) -> str:
        return f"{self.tokens} × {self.vocabulary}"


class Inputs:
    """Hidden states `[N, D]`, heads `[V, D]` and labels `[N]`; the teacher's are the student's with noise."""

    def __init__(self, shape: Shape):
        generator = torch.Generator().manual_seed(0)

        def draw(rows: int, scale: float) -> Tensor:
            values = torch.randn(rows, shape.width, generator=generator).mul_(scale)
            return values.to(shape.device, shape.dtype)

        self.hidden_ND = draw(shape.tokens, 1.0)
        self.weight_VD = draw(shape.vocabulary, shape.width**-0.5)
        self.teacher_hidden_ND = draw(shape.tokens, 0.3).add_(self.hidden_ND)
        self.teacher_weight_VD = draw(shape.vocabulary, 0.1 * shape.width**-0.5).add_(self.weight_VD)
        labels_N = torch.randint(shape.vocabulary, (shape.tokens,), generator=generator)
        self.labels_N = labels_N.to(shape.device)
        self.hidden_ND.requires_grad_()
        self.weight_VD.requires_grad_()

    def logits(self) -> tuple[Tensor, Tensor]:
        """All logits of student and teacher, float32."""
        with torch.no_grad():
            teacher_NV = (self.teacher_hidden_ND @ self.teacher_weight_VD.T).float()
        return (self.hidden_ND @ self.weight_VD.T).float(), teacher_NV


Loss = Callable[[Inputs], Tensor]


def naive(x: Inputs) -> Tensor:
    """Torch alone."""
    logits_NV, teacher_NV = x.logits()
    return (F.cross_entropy(logits_NV, x.labels_N) + jsd(logits_NV, teacher_NV)) / 2


def jsd(logits_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """Mean JSD(½), by its definition."""
    log_s, log_t = logits_NV.log_softmax(-1), teacher_NV.log_softmax(-1)
    log_m = (log_s.exp() / 2 + log_t.exp() / 2).log()
    kl = lambda log_p: F.kl_div(log_m, log_p, reduction="batchmean", log_target=True)  # noqa: E731
    return (kl(log_s) + kl(log_t)) / 2


def ours(x: Inputs) -> Tensor:
    """lingu_ray's fused loss, with KD on every token."""
    n = len(x.labels_N)
    scale_N = torch.full((n,), 0.5 / n, device=x.labels_N.device)
    all_N = torch.ones(n, dtype=torch.bool)
    teacher = TeacherOutput(x.teacher_hidden_ND, OutputHead(x.teacher_weight_VD), all_N)
    divergence = divergence_of("jsd", beta=0.5)
    head = OutputHead(x.weight_VD)
    return ce_kd_loss(x.hidden_ND, head, x.labels_N, LossScales(scale_N, scale_N, 1.0), teacher, divergence).loss


def make_liger() -> Loss:
    """Liger's chunked loss."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.5, weight_soft_loss=0.5, beta=0.5)
    return lambda x: loss(x.hidden_ND, x.weight_VD, x.teacher_hidden_ND, x.teacher_weight_VD, x.labels_N)


def make_liger_triton() -> Loss:
    """Liger's Triton kernel."""
    from liger_kernel.transformers import LigerFusedLinearJSD

    loss = LigerFusedLinearJSD(jsd_beta=0.5)
    return lambda x: loss(x.hidden_ND, x.weight_VD, x.teacher_hidden_ND, x.teacher_weight_VD, None) / 2


def make_trl_gkd() -> Loss:
    """TRL's loss on logits."""
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    def loss(x: Inputs) -> Tensor:
        logits_NV, teacher_NV = x.logits()
        return (F.cross_entropy(logits_NV, x.labels_N) + GKDTrainer.generalized_jsd_loss(logits_NV, teacher_NV)) / 2

    return loss


def make_trl_fused() -> Loss:
    """TRL's fused divergence."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    def loss(x: Inputs) -> Tensor:
        teacher = (x.teacher_hidden_ND, x.teacher_weight_VD, None)
        values_N, _ = ChunkedDivergenceFunction.apply(x.hidden_ND, x.weight_VD, None, *teacher, 0.5)
        return values_N.mean() / 2

    return loss


MAKERS: dict[str, Callable[[], Loss]] = {
    "naive": lambda: naive,
    "liger": make_liger,
    "liger_triton": make_liger_triton,
    "trl_gkd": make_trl_gkd,
    "trl_fused": make_trl_fused,
    "ours": lambda: ours,
}


def available(device: str) -> list[str]:
    """Names of the losses that can run here; a line on stderr for each that cannot."""
    names = []
    for name in MAKERS:
        package = PACKAGES.get(name)
        if package and importlib.util.find_spec(package) is None:
            print(f"{name}: left out, {package} is not installed", file=sys.stderr)
        elif name == "liger_triton" and device == "cpu":
            print(f"{name}: left out, it runs on GPUs only", file=sys.stderr)
        else:
            names.append(name)
    return names


def pass_of(loss: Loss, inputs: Inputs) -> float:
    """The loss of one forward and backward pass, whose gradients are dropped."""
    try:
        value = loss(inputs)
        value.backward()
    finally:
        inputs.hidden_ND.grad = inputs.weight_VD.grad = None
    return float(value.detach())


def peak_memory(name: str, shape: Shape) -> float | None:
    """MiB above the inputs at the peak of a pass; None where it cannot be measured."""
    if shape.device == "cpu":
        if sys.platform != "linux":
            return None
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_peak_of_process, name, shape, torch.get_num_threads()).result()
    loss, inputs = MAKERS[name](), Inputs(shape)
    pass_of(loss, inputs)  # compiles, and allocates the libraries' workspaces
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    pass_of(loss, inputs)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _peak_of_process(name: str, shape: Shape, threads: int) -> float:
    """`peak_memory` in this fresh process, by its resident memory."""
    torch.set_num_threads(threads)
    loss, inputs = MAKERS[name](), Inputs(shape)
    pass_of(loss, inputs)
    with Growth() as taken:
        pass_of(loss, inputs)
    return taken.mib


def compare(shape: Shape, names: list[str], repeats: int) -> list[Row]:
    """One row for each loss at this shape."""
    values, timings, missing = run(shape, names, repeats)
    memory = {name: peak_memory(name, shape) for name in timings}
    naive_memory, ours = memory.get("naive"), timings.get("ours")
    rows = []
    for name in names:
        row: Row = {"tokens": shape.tokens, "vocabulary": shape.vocabulary, "loss": name}
        rows.append(row)
        if name not in timings:
            row.update(dict.fromkeys(("ms", "times ours", "MiB", "of naive", "off")) | {"quartiles, ms": missing[name]})
            continue
        low, high = timings[name].spread
        mine, reference = memory[name], values.get("naive KD" if name in KD_ALONE else "naive")
        row |= {
            "ms": timings[name].median * 1e3,
            "quartiles, ms": f"{low * 1e3:.3g}–{high * 1e3:.3g}",
            "times ours": None if ours is None else ratio(timings[name], ours),
            "MiB": mine,
            "of naive": mine / naive_memory if mine is not None and naive_memory else None,
            "off": None if reference is None else abs(values[name] - reference) / reference,
        }
    return rows


def run(shape: Shape, names: list[str], repeats: int) -> tuple[dict[str, float], dict[str, Timing], dict[str, str]]:
    """Values and timings of the losses that run, and why the others do not.

    The values include the naive loss's KD part.
    """
    inputs = Inputs(shape)
    values: dict[str, float] = {}
    passes: dict[str, Callable[[], float]] = {}
    missing: dict[str, str] = {}
    for name in names:
        made, why = run_or_reason(MAKERS[name])  # imports its library
        if made is not None:
            one = partial(pass_of, made, inputs)
            value, why = run_or_reason(one)
            if value is not None:
                values[name], passes[name] = value, one
        if why is not None:
            missing[name] = why
    timings = measure(passes, repeats) if passes else {}
    with torch.no_grad():
        kd = if_it_fits(lambda: float(jsd(*inputs.logits())) / 2)
    return values | ({} if kd is None else {"naive KD": kd}), timings, missing


def plot(rows: list[Row], shapes: list[Shape], names: list[str], out: Path) -> None:
    """Bars of time relative to ours, and of memory relative to naive."""
    for file, column, title, reference in (
        ("loss_time", "times ours", "Time, ours = 1", ("ours", 1.0)),
        ("loss_memory", "of naive", "Peak memory, naive = 1", None),
    ):
        series = {name: [row[column] for row in rows if row["loss"] == name] for name in names}
        plot_bars(out / f"{file}.png", title, column, [str(shape) for shape in shapes], series, reference)


if __name__ == "__main__":
    run_command(main)
