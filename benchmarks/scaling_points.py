"""`benchmarks.scaling`'s formulas against counted bytes, for a run of yours on 1, 2 and 4 Ray nodes of this machine.

    python -m benchmarks.scaling_points run=my-run.yaml nodes=1,2,4 out=docs/scaling

Each node is a real `ray start --block` with room for one worker. It counts the KV that teachers were sent
(metrics.jsonl), what workers send each other (`ss`, by connection), the files of a checkpoint, the fullest object
store, and the CPU time of driver and of Ray Train's controller. Nodes that share a machine's cores say nothing about
speed, so no step times are compared. Linux only.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from pydantic import Field, PositiveInt
from safetensors import safe_open
from transformers import AutoConfig, AutoProcessor

from benchmarks.local_nodes import LocalNodes, processor_seconds, sent_among
from benchmarks.processes import titled
from benchmarks.report import BenchmarkConfig, Row, publish
from benchmarks.soak import started
from lingu_ray.config import Config, Several
from lingu_ray.config.command_line import load_config, settings_alone
from lingu_ray.config.help_pages import Help
from lingu_ray.corpus.encode import Encoder
from lingu_ray.corpus.store import Corpus
from lingu_ray.cost.formulas import all_reduce_bytes, checkpoint_bytes, kv_bytes
from lingu_ray.errors import UserError, run_command
from lingu_ray.paths import LocalPath
from lingu_ray.runtime.checkpoints.checkpoint import checkpoints
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.records import read_records

FIRST = 5  # counting begins after this step, when connections are open
POLL_S = 0.02


class PointsConfig(BenchmarkConfig):
    """Settings of the benchmark."""

    run: str = Field("demo", description="recipe or YAML file of the run, with a teacher as an actor")
    nodes: Several[PositiveInt] = Field((1, 2, 4), description="numbers of nodes")
    steps: PositiveInt = Field(100, gt=FIRST, description="steps of each run")
    scratch: LocalPath = Field(Path("points"), description="folder of the runs")


HELP = Help("python -m benchmarks.scaling_points [key=value ...]", __doc__, PointsConfig)


def main(arguments: list[str]) -> None:
    """Run, count, compare and publish."""
    options = settings_alone(arguments, HELP)
    rows = [row for nodes in options.nodes for row in rows_of(options, nodes)]
    publish("scaling_points", rows, options.out, {"nodes": options.nodes, "steps": options.steps})


def rows_of(options: PointsConfig, nodes: int) -> list[Row]:
    """Train on `nodes` nodes; the rows compare counts with the formulas."""
    words = [options.run, f"name=nodes-{nodes}", f"output_dir={options.scratch}", "resume=never"]
    words += [f"ray.num_workers={nodes}", "ray.cpus_per_worker=1", "ray.use_gpu=false", f"train.steps={options.steps}"]
    words += [f"train.checkpoint_every={options.steps}", "train.validate_every=0", "train.samples=0"]
    words += ["controls=[]", "evaluation.tasks=[]"]
    config = load_config(words)
    folder = RunFolder(config.run_dir)
    with LocalNodes(nodes) as cluster:
        counts = train(words, folder, cluster, options.steps)
    corpus = Corpus(Path(json.loads(folder.corpus.read_text(encoding="utf-8"))["path"]))
    newest = checkpoints(folder.checkpoints)[-1][0]
    trained = _trained(newest)
    compared = {
        "KV of the run, bytes": (_kv_sent(folder), _kv_modeled(config, folder, corpus)),
        "sent by a worker in a step, bytes": (counts.sent / nodes, all_reduce_bytes(trained, nodes)),
        "checkpoint, bytes": (_bytes(newest), checkpoint_bytes(trained)),
        "fullest object store, bytes": (counts.store, None),
        "driver in a step, ms of processor": (counts.driver_s * 1e3, None),
        "controller in a step, ms of processor": (counts.controller_s * 1e3, None),
    }
    return [
        {
            "nodes": nodes,
            "what": what,
            "counted": float(counted),
            "model": model,
            "ratio": counted / model if model else None,
        }
        for what, (counted, model) in compared.items()
    ]


@dataclass(frozen=True)
class Counts:
    """Counts of a run: bytes sent by all workers and CPU seconds, each per step; bytes of the fullest object store."""

    sent: float
    driver_s: float
    controller_s: float
    store: float


def train(words: list[str], folder: RunFolder, cluster: LocalNodes, steps: int) -> Counts:
    """Train on the cluster, and count from step `FIRST` to the last step seen before the end."""
    os.environ |= cluster.env | {"RAY_ADDRESS": cluster.address}
    store, first, last = 0, None, None
    with started(words) as driver:
        drivers = [psutil.Process(driver.pid)]
        while driver.poll() is None:
            records = read_records(folder.metrics)
            step = records[-1]["step"] if records else 0
            if FIRST <= step < steps:
                controllers, workers = (
                    titled(cluster.processes, f"ray::{kind}") for kind in ("TrainController", "RayTrainWorker")
                )
                now = step, sent_among(workers), *map(processor_seconds, (drivers, controllers))
                first, last = first or now, now
                store = max(store, cluster.fullest_store())
            time.sleep(POLL_S)
    if driver.returncode or first is None or last is None or last[0] == first[0]:
        raise UserError(f"lingu_ray.train {' '.join(words)} ended with {driver.returncode}, or too early to be counted")
    passed = last[0] - first[0]
    sent, driver_s, controller_s = (
        (after - before) / passed for before, after in zip(first[1:], last[1:], strict=True)
    )
    return Counts(sent, driver_s, controller_s, store)


def _kv_sent(folder: RunFolder) -> int:
    return sum(record["kv_bytes"] for record in read_records(folder.metrics) if "kv_bytes" in record)


def _kv_modeled(config: Config, folder: RunFolder, corpus: Corpus) -> float:
    """The formula's KV for all rows that the run read."""
    encoder = Encoder(AutoProcessor.from_pretrained(folder.initial_model), config.corpus.max_length)
    distilled = {source.name for source in config.training_sources() if config.distills(source)}
    donated = 0
    for step in range(config.train.steps):
        for row in corpus.rows(corpus.positions(step, config.train.rows_per_step)):
            if row.source in distilled:
                sample = encoder.encode(row)
                donated += len(sample) - int(sample.supervised_T.sum()) - 1  # the prompt but for its last token
    shape = AutoConfig.from_pretrained(config.teacher.path)
    heads = shape.num_key_value_heads
    width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    number = 4 if config.train.precision == "fp32" else 2  # auto: bf16, on GPUs
    return kv_bytes(shape.num_hidden_layers, heads, width, donated, number)


def _trained(checkpoint: Path) -> int:
    """The number of trained weights, of which there are moments, in one file or a part by each worker."""
    trained = 0
    for path in checkpoint.glob("optimizer*.safetensors"):
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name.startswith("exp_avg.")]  # noqa: SIM118
            trained += sum(torch.Size(file.get_slice(name).get_shape()).numel() for name in names)
    return trained


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


if __name__ == "__main__":
    run_command(main)
