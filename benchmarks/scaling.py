"""The cost of a run at any size, by formulas: operations, bytes by kind, hours and price (see docs/scaling.md).

    python -m benchmarks.scaling gpus=1,8,64,256,1000 out=docs/scaling

Nothing is measured here; `benchmarks.scaling_points` compares the formulas with bytes counted on nodes of one machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from benchmarks.report import BenchmarkConfig, Row, publish
from lingu_ray.config import Several
from lingu_ray.config.command_line import settings_alone
from lingu_ray.config.help_pages import Help
from lingu_ray.corpus.store import ROW_GROUP
from lingu_ray.cost.formulas import (
    Pair,
    Sample,
    all_reduce_bytes,
    checkpoint_bytes,
    fsdp2_bytes,
    kv_bytes,
    student_flops,
    teacher_flops,
)
from lingu_ray.errors import run_command
from lingu_ray.report.plots import SOURCE_COLORS, canvas

RECORD = 400  # bytes of a step in metrics.jsonl
HOUR = 3600


def readings(readers: int, rows_per_step: int, together: int) -> float:
    """How often the corpus is read in a pass, at most.

    Each reader takes rows_per_step / readers neighboring rows, and reads whole parts of `together` rows, which it
    shares with other readers.
    """
    own = rows_per_step / readers
    return min(readers, 1 + (together - 1) / own) if readers > 1 else 1


class ScalingConfig(BenchmarkConfig):
    """Settings of the model: by default a VLM of SmolLM2-1.7B and a tower of 0.43 B weights, on H100."""

    gpus: Several[PositiveInt] = Field((1, 8, 64, 256, 1000), description="GPUs, a worker each")
    samples: PositiveFloat = Field(1e10, description="samples of the whole run")
    decoder: PositiveFloat = Field(1.61e9, description="weights of the decoder without embeddings")
    tower: PositiveFloat = Field(0.43e9, description="weights of the vision tower")
    layers: PositiveInt = Field(24, description="decoder layers")
    width: PositiveInt = Field(2048, description="decoder width")
    kv_heads: PositiveInt = Field(32, description="key/value heads")
    head_dim: PositiveInt = Field(64, description="width of a head")
    vocabulary: PositiveInt = Field(49152, description="vocabulary ids")
    tower_tokens: PositiveInt = Field(1024, description="patches that the tower reads of a sample")
    prompt: PositiveInt = Field(320, description="prompt tokens, image tokens included")
    answer: PositiveInt = Field(64, description="answer tokens")
    distilled: float = Field(0.5, ge=0, le=1, description="share of the rows that are distilled")
    rows_per_step: PositiveInt = Field(4096, description="as train.rows_per_step")
    micro_batches: PositiveInt = Field(1, description="micro-batches of a worker in a step")
    steps_per_checkpoint: PositiveInt = Field(1000, description="as train.checkpoint_every")
    parallelism: Literal["replicated", "fsdp2"] = Field("replicated", description="as train.parallelism")
    row_bytes: PositiveFloat = Field(3e4, description="bytes of a row in the corpus: a JPEG and its text")
    rows_per_shard: PositiveInt = Field(1024, description="as corpus.rows_per_shard")
    workers_per_node: PositiveInt = Field(8, description="GPUs of a node")
    gpu_flops: PositiveFloat = Field(989e12, description="operations a second of a GPU")
    utilization: float = Field(0.35, gt=0, le=1, description="share of them that training reaches; assumed")
    node_network: PositiveFloat = Field(50e9, description="bytes a second between nodes, of each node")
    disk: PositiveFloat = Field(2e9, description="bytes a second at which one process writes to shared storage")
    gpu_hour: PositiveFloat = Field(3.0, description="price of a GPU for an hour")


HELP = Help("python -m benchmarks.scaling [key=value ...]", __doc__, ScalingConfig)


def main(arguments: list[str]) -> None:
    """Compute and publish."""
    options = settings_alone(arguments, HELP)
    rows = [row_of(options, gpus) for gpus in options.gpus]
    publish("scaling", rows, options.out, options.recorded, plot=plot)


def row_of(options: ScalingConfig, gpus: int) -> Row:
    """The row of one size of the cluster."""
    rest = options.tower + options.vocabulary * options.width
    trained = options.decoder + rest
    pair = Pair(options.decoder, options.tower, options.layers, options.width, options.vocabulary)
    sample = Sample(options.tower_tokens, options.prompt, options.answer, options.distilled)
    nodes = -(-gpus // options.workers_per_node)
    flops = student_flops(pair, sample) + teacher_flops(pair, sample)
    compute_s = options.rows_per_step * flops / (gpus * options.gpu_flops * options.utilization)
    sent = (
        fsdp2_bytes(options.decoder, rest, gpus, options.micro_batches, 2)
        if options.parallelism == "fsdp2"
        else all_reduce_bytes(trained, gpus)
    )
    # a ring crosses each node's network once, whatever the number of its workers; gathers of FSDP2 likewise
    network_s = sent / options.node_network if nodes > 1 else 0.0
    saved = checkpoint_bytes(trained)
    save_s = saved / options.disk / options.steps_per_checkpoint
    step_s = compute_s + network_s + save_s
    steps = options.samples / options.rows_per_step
    hours = steps * step_s / HOUR
    corpus = options.samples * options.row_bytes
    rows_a_second = options.rows_per_step / step_s
    donated = options.distilled * (options.prompt - 1) * rows_a_second / gpus  # the last one is the teacher's
    kv = kv_bytes(options.layers, options.kv_heads, options.head_dim, donated, number=2)
    return {
        "gpus": gpus,
        "nodes": nodes,
        "TFLOP a sample": flops / 1e12,
        "teacher's share": teacher_flops(pair, sample) / flops,
        "rows a second": rows_a_second,
        "days": hours / 24,
        "price": hours * gpus * options.gpu_hour,
        "step, s": step_s,
        "gradients, s": network_s,
        "checkpoint, s": save_s,
        "sent a step, GB": sent / 1e9,
        "KV, GB/s a node": kv * min(gpus, options.workers_per_node) / 1e9,
        "checkpoint, GB": saved / 1e9,
        "corpus, TB": corpus / 1e12,
        "shards": options.samples / options.rows_per_shard,
        "shared disk, GB/s": rows_a_second * options.row_bytes * readings(gpus, options.rows_per_step, ROW_GROUP) / 1e9,
        "copied from bucket, TB": corpus * readings(nodes, options.rows_per_step, options.rows_per_shard) / 1e12,
        "metrics.jsonl, GB": steps * RECORD / 1e9,
    }


def plot(rows: list[Row], path: Path) -> None:
    """Shares of a step's time for gradients and checkpoints, by number of GPUs."""
    gpus = [row["gpus"] for row in rows]
    parts = {name: [row[name] / row["step, s"] for row in rows] for name in ("gradients, s", "checkpoint, s")}
    with canvas(path, (6, 3.6)) as figure:
        axis = figure.subplots()
        for (name, shares), color in zip(parts.items(), SOURCE_COLORS, strict=False):
            axis.plot(gpus, shares, marker="o", label=name.removesuffix(", s"), color=color)
        axis.set(xscale="log", xlabel="GPUs", ylabel="share of a step's time", ylim=(0, None))
        axis.set_xticks(gpus, list(map(str, gpus)))
        axis.minorticks_off()
        axis.set_title("What does not shrink with more GPUs (model)", loc="left")
        axis.legend()


if __name__ == "__main__":
    run_command(main)
