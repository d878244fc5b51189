"""The training time that a checkpoint costs, written by the first worker while all wait, or by all in the background.

    python -m benchmarks.checkpoint workers=2 out=docs/performance

Blocks of plain fine-tuning steps of SmolLM2's shapes on short texts, at several widths, in ways that are timed in turn:

    none     no checkpoint
    whole    train.checkpoint=whole: the first worker writes, and training waits
    sharded  train.checkpoint=sharded: each worker copies its part, and writes it while training goes on

A block of the latter two begins with a checkpoint and ends when it is complete, so it includes writing time that the
block is too short to hide. `lost_s`: seconds longer than `none` in the same round. `memory_MiB`: peak of host memory
that the first worker takes for a checkpoint, on top of training.
"""

from __future__ import annotations

import gc
import json
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
import torch.multiprocessing
from pydantic import Field, PositiveInt

from benchmarks.report import BenchmarkConfig, Row, Timing, measure, plot_bars, publish
from benchmarks.resident import Growth
from benchmarks.text_training import TextTraining, text_batches
from lingu_ray.config import Several, TrainConfig
from lingu_ray.config.command_line import settings_alone
from lingu_ray.config.help_pages import Help
from lingu_ray.errors import run_command
from lingu_ray.paths import LocalPath
from lingu_ray.runtime.checkpoints.checkpoint import CheckpointState
from lingu_ray.runtime.checkpoints.checkpoint_writer import CheckpointWriter
from lingu_ray.runtime.training.distributed import is_main_process

Layout = Literal["whole", "sharded"]
LAYOUTS: tuple[Layout, ...] = ("whole", "sharded")


class CheckpointConfig(BenchmarkConfig):
    """Settings of the benchmark."""

    repeats: PositiveInt = Field(3, description="rounds of timing")
    workers: PositiveInt = Field(1, description="workers, a GPU each where there are any; several shard by FSDP2")
    hidden: Several[PositiveInt] = Field((192, 576, 960), description="widths of the decoder, multiples of 192")
    layers: PositiveInt = Field(30, description="decoder layers; SmolLM2-135M has 30, and width 576")
    steps: PositiveInt = Field(20, description="steps of a block")
    rows: PositiveInt = Field(8, description="rows of a step, of each worker")
    tokens: PositiveInt = Field(32, description="tokens of a row")
    folder: LocalPath | None = Field(None, description="existing folder to write to; null: the system's temporary one")


HELP = Help("python -m benchmarks.checkpoint [key=value ...]", __doc__, CheckpointConfig)


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    options = settings_alone(arguments, HELP)
    settings = options.recorded
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        start = "spawn" if torch.cuda.is_available() else "fork"
        torch.multiprocessing.start_processes(
            _worker, (settings, Path(folder)), nprocs=options.workers, start_method=start
        )
        rows = json.loads((Path(folder) / "rows.json").read_text(encoding="utf-8"))
    publish("checkpoint", rows, options.out, settings, plot=plot)


def plot(rows: list[Row], path: Path) -> None:
    """Two bars for each size."""
    sizes = list(dict.fromkeys(row["checkpoint_MB"] for row in rows))
    heights = {layout: [row["lost_s"] for row in rows if row["layout"] == layout] for layout in LAYOUTS}
    plot_bars(path, "What a checkpoint costs", "seconds of training", [f"{size} MB" for size in sizes], heights)


def _worker(rank: int, settings: Row, folder: Path) -> None:
    """One worker's part; the first writes the rows."""
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(max(1, torch.get_num_threads() // settings["workers"]))
    if settings["workers"] > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        meeting = f"file://{folder}/meeting"
        dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=settings["workers"])
    rows = [row for hidden in settings["hidden"] for row in _rows(settings | {"hidden": hidden}, folder, device)]
    if rank == 0:
        (folder / "rows.json").write_text(json.dumps(rows))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _rows(settings: Row, folder: Path, device: torch.device) -> list[Row]:
    """Both layouts at one size."""
    train = TrainConfig(parallelism="fsdp2" if settings["workers"] > 1 else "ddp")
    training = TextTraining(settings, "fp32", train, device)
    batches = text_batches([settings["tokens"]] * settings["rows"], settings["rows"] * settings["tokens"])
    training.step(batches)

    def make_writer(layout: Layout) -> CheckpointWriter:
        model = training.student.model
        return CheckpointWriter(folder / "checkpoints", model, training.optimizer, layout, 1, lambda path: None)

    def block(writer: CheckpointWriter | None) -> None:
        if writer is not None:
            writer.save(CheckpointState(1, None))
        for _ in range(settings["steps"]):
            training.step(batches)
            if writer is not None:
                writer.poll()
        if writer is not None:
            writer.wait()

    memory = {layout: _memory(make_writer(layout)) for layout in LAYOUTS}
    writers = {layout: make_writer(layout) for layout in LAYOUTS}
    ways = {"none": partial(block, None)} | {name: partial(block, writer) for name, writer in writers.items()}
    timings = measure(ways, settings["repeats"])
    size = writers["whole"].bytes
    if is_main_process():  # the last to finish, as it completes the checkpoint
        shutil.rmtree(folder / "checkpoints")
    return [_row(layout, size, timings, settings["steps"], memory[layout]) for layout in LAYOUTS]


def _row(layout: Layout, size: int, timings: dict[str, Timing], steps: int, memory: float) -> Row:
    none = timings["none"]
    lost = Timing(tuple(a - b for a, b in zip(timings[layout].seconds, none.seconds, strict=True)))
    return {
        "checkpoint_MB": round(size / 1e6),
        "layout": layout,
        "step_s": none.median / steps,
        "lost_s": lost.median,
        "quartiles": lost.quartiles,
        "memory_MiB": memory,
    }


def _memory(writer: CheckpointWriter) -> float:
    """Peak in MiB of this process's memory for a writer's first checkpoint, on top of what it has before."""
    gc.collect()
    with Growth() as taken:
        writer.save(CheckpointState(1, None))
        writer.wait()
    return taken.mib


if __name__ == "__main__":
    run_command(main)
