"""What the teacher costs a training step: plain fine-tuning, a full-sequence teacher, and the KV-shared one.

    python -m benchmarks.step out=docs/performance

Each way takes one optimizer step over the same micro-batches of image questions, all of them distilled: the worst case
for the teacher. Weights are random. Without `pair` the decoder has SmolLM2-135M's shapes, and the vision tower is kept
small, so that the student's own work does not hide the teacher's; with it all is as in that model. Rows:

    sft                      cross-entropy alone: the ratio's 1
    full_sequence            a teacher that reads the whole sequence in the worker and makes logits of the answers alone
    full_sequence_all_logits the same, student and teacher making logits of every position, as TRL's GKD trainer does
    in_process               the KV-shared teacher in the worker
    in_process_joined        the same, and one call of the teacher answers all micro-batches of the step
    actor_0, _1, _2          the KV-shared teacher in an actor, with look-ahead 0, 1 and 2 (of the step's micro-batches)
    cuda_ipc_0, _1           the same, and the KV stays where it is (only where asked for, and GPUs share memory)

All runs in one Ray task, so that worker and teacher have the priority that they have in training. Every way is timed
between two steps of `sft` and compared with their mean, so that a machine whose speed drifts does not tell against one.
A way for which the GPU's memory does not suffice, or cannot be shared, has a row that says so, and no numbers. So has
one that fails; then the exit code is 1. `peak_GiB`, on GPUs: most memory of the worker in a further step, weights and
optimizer included, an actor's left out. `estimated_s` and `estimated_GiB`, on GPUs with a `pair`: what `lingu-ray
estimate` says of them, without the CUDA context.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import ray
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from tqdm import tqdm

from benchmarks.one_step import Teachers, add_gradients, run_config
from benchmarks.pairs import Pair, PairName, llama_pair, named_pair
from benchmarks.report import (
    BenchmarkConfig,
    Measured,
    Row,
    Timing,
    measure_between,
    plot_bars,
    publish,
    ratios,
    require_all,
    run_or_reason,
)
from lingu_ray.config import Config, Several, TrainConfig
from lingu_ray.config.command_line import settings_alone
from lingu_ray.config.help_pages import Help
from lingu_ray.config.settings import changed
from lingu_ray.corpus.batch import MicroBatch
from lingu_ray.cost.devices import GIB, Device, gpu_here
from lingu_ray.cost.estimate import estimate_of
from lingu_ray.cost.models import read_models
from lingu_ray.cost.workload import RowConfig
from lingu_ray.distill.donation import predicting
from lingu_ray.distill.inputs import forward_arguments
from lingu_ray.distill.student import Student
from lingu_ray.distill.teacher import Teacher
from lingu_ray.errors import UserError, run_command
from lingu_ray.runtime.cluster.connect import connect
from lingu_ray.runtime.training.optimizer import make_optimizer
from lingu_ray.runtime.training.prepare import prepare
from lingu_ray.runtime.training.step import MicroBatches, model_inputs

Way = Literal[
    "full_sequence",
    "full_sequence_all_logits",
    "in_process",
    "in_process_joined",
    "actor_0",
    "actor_1",
    "actor_2",
    "cuda_ipc_0",
    "cuda_ipc_1",
]
EVERYWHERE: tuple[Way, ...] = get_args(Way)[:-2]
PLACES: dict[str, tuple[str, int, str]] = {
    **{f"actor_{ahead}": ("actor", ahead, "object_store") for ahead in (0, 1, 2)},
    **{f"cuda_ipc_{ahead}": ("actor", ahead, "cuda_ipc") for ahead in (0, 1)},
}
"""Placement, look-ahead and transport of each way whose teacher is an actor."""


class StepConfig(BenchmarkConfig):
    """Settings of the benchmark."""

    repeats: PositiveInt = Field(3, description="rounds of timing")
    most_seconds: PositiveInt | None = Field(None, description="after which no round begins; null: all do")
    ways: Several[Way] = Field(EVERYWHERE, description="what is timed beside plain fine-tuning")
    pair: PairName | None = Field(None, description="shapes of a model; null: a decoder as below, and a small tower")
    rows: PositiveInt = Field(8, description="rows of a micro-batch")
    micro_batches: PositiveInt = Field(3, description="micro-batches of a step")
    image_tokens: PositiveInt = Field(256, description="image tokens of a row; a square, or whole tiles")
    text_tokens: PositiveInt = Field(32, description="question tokens")
    answer_tokens: PositiveInt = Field(32, description="answer tokens")
    layers: PositiveInt = Field(30, description="decoder layers; SmolLM2-135M has 30")
    hidden: PositiveInt = Field(576, multiple_of=192, description="decoder width")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="as train.precision")


HELP = Help("python -m benchmarks.step [key=value ...]", __doc__, StepConfig)


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    options = settings_alone(arguments, HELP)
    settings = options.recorded
    config = run_config("unused", "in_process", 0, options.precision)
    connect(config.ray)
    gpus = 1 if torch.cuda.is_available() else 0
    task: Any = ray.remote(num_cpus=1, num_gpus=gpus, num_returns="streaming")(_measure)
    steps: list[Measured] = []
    figures: dict[str, Row] = {}
    absent: dict[str, str] = {}
    failure: Exception | None = None
    with tqdm(total=len(settings["ways"]) * settings["repeats"], unit="step", desc="after warm-up") as bar:
        try:
            for reference in task.remote(settings):
                found = ray.get(reference)
                if isinstance(found, Figures):
                    figures.setdefault(found.name, {}).update(found.columns)
                elif isinstance(found, Absent):
                    absent[found.name] = found.why
                else:
                    steps.append(found)
                    bar.update()
        except Exception as error:  # what was measured before is published
            failure = error
    if not steps:
        why = ", ".join(f"{name}: {why}" for name, why in absent.items())
        raise UserError(f"nothing could be measured: {failure or why}") from failure
    timed = {step.name for step in steps}
    absent |= {way: "not measured" for way in settings["ways"] if way not in timed | absent.keys()}
    columns = list(dict.fromkeys(column for found in figures.values() for column in found))
    rows = [
        _row(way, steps, settings, absent.get(way)) | {name: figures.get(way, {}).get(name) for name in columns}
        for way in ("sft", *settings["ways"])
    ]
    publish("step", rows, options.out, settings, plot=plot)
    if failure is not None:
        raise failure
    require_all(absent)


def plot(rows: list[Row], path: Path) -> None:
    """A bar for each way."""
    ways = [row["way"].replace("_", "\n") for row in rows]
    heights = {"one optimizer step": [row["ratio_to_sft"] for row in rows]}
    plot_bars(path, "What a teacher costs", "time over plain fine-tuning", ways, heights, ("plain fine-tuning", 1.0))


def _row(way: str, steps: list[Measured], settings: Row, why_absent: str | None = None) -> Row:
    """A way's steps against the steps of `sft` around them, or why there are none."""
    sft = Timing(tuple(step.beside for step in steps if way in (step.name, "sft")))
    timing = sft if way == "sft" else Timing(tuple(step.seconds for step in steps if step.name == way))
    rows = settings["rows"] * settings["micro_batches"]
    tokens = rows * (settings["image_tokens"] + settings["text_tokens"] + settings["answer_tokens"])
    if why_absent is not None:
        unmeasured = dict.fromkeys(("ratio_to_sft", "quartiles", "median_s", "tokens_per_s"))
        return {"way": way} | unmeasured | {"quartiles": why_absent}
    over_sft = ratios(timing, sft)
    return {
        "way": way,
        "ratio_to_sft": over_sft.median,
        "quartiles": over_sft.quartiles,
        "median_s": timing.median,
        "tokens_per_s": tokens / timing.median,
    }


@dataclass(frozen=True)
class Figures:
    """Further columns of a way's row."""

    name: str
    columns: Row


@dataclass(frozen=True)
class Absent:
    """Why a way has no figures here."""

    name: str
    why: str


def _measure(settings: Row) -> Iterator[Measured | Figures | Absent]:
    """Time every way between steps of plain fine-tuning; then its memory, and what is estimated."""
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pair, asked = pair_of(settings), settings["ways"]
    with device:  # random numbers for billions of weights take a CPU long
        student, teacher = Student(pair.make_student()), pair.make_teacher()
    prepare(student, TrainConfig(), device, seed=0)
    optimizer = make_optimizer(student, TrainConfig())
    batches = [as_read(pair.micro_batch(settings, seed), settings, device) for seed in range(settings["micro_batches"])]
    with tempfile.TemporaryDirectory() as folder:
        pair.save_teacher(teacher, Path(folder))
        del teacher
        teachers = Teachers(folder, settings["precision"], device)
        steps = {"sft": _way("sft", student, teachers, batches, optimizer)}
        for name in asked:
            why = teachers.unreadable() if name.startswith("cuda_ipc") else None
            if why is None:
                steps[name] = _way(name, student, teachers, batches, optimizer)
                why = _obstacle(steps[name], optimizer)
            if why is not None:
                steps.pop(name, None)
                yield Absent(name, why)
        if len(steps) == 1:
            return
        timed = {name: step for name, step in steps.items() if name != "sft"}
        most = settings["most_seconds"] or math.inf
        yield from measure_between(steps["sft"], timed, settings["repeats"], most_seconds=most)
        if device.type == "cuda":
            for name, step in steps.items():
                torch.cuda.reset_peak_memory_stats()
                step()
                unused = teachers.bytes_here if name == "sft" or name in PLACES else 0
                yield Figures(name, {"peak_GiB": (torch.cuda.max_memory_allocated() - unused) / GIB})
            if settings["pair"] is not None and (known := gpu_here()) is not None:
                yield from estimates(settings, known)


def estimates(settings: Row, device: Device) -> Iterator[Figures]:
    """What `lingu-ray estimate` says of those ways that a run has."""
    row = RowConfig(**{name: settings[name] for name in ("image_tokens", "text_tokens", "answer_tokens")})
    with tempfile.TemporaryDirectory() as folder:
        pair = pair_of(settings)
        pair.student.save_pretrained(f"{folder}/student")
        pair.teacher.save_pretrained(f"{folder}/teacher")
        models = read_models(_as_run("in_process", settings, folder))  # once: of its decoder a pass is traced once
        for name in ("sft", *settings["ways"]):
            if name.startswith("full_sequence"):
                continue
            of_way = replace(models, teacher=None) if name == "sft" else models
            found = estimate_of(_as_run(name, settings, folder), row, device, of_way)
            *items, _context = found.training[0].items
            in_torch = sum(item.bytes for item in items) / GIB
            yield Figures(name, {"estimated_s": found.time.total, "estimated_GiB": in_torch})


def _as_run(name: str, settings: Row, folder: str) -> Config:
    """The settings of a run whose models' configurations are in the folder, and whose steps are this way's."""
    placement, look_ahead, transport = PLACES.get(name, ("in_process", 0, "object_store"))
    of_a_call = settings["micro_batches"] if name.endswith("joined") else 1
    tokens = settings["image_tokens"] + settings["text_tokens"] + settings["answer_tokens"]
    config = run_config(f"{folder}/teacher", placement, look_ahead, settings["precision"], transport, of_a_call)
    as_step = {
        "student.path": f"{folder}/student",
        "distill.policy": "none" if name == "sft" else config.distill.policy,
        "train.tokens_per_micro_batch": settings["rows"] * tokens,
        "train.rows_per_step": settings["rows"] * settings["micro_batches"],
        "corpus.max_length": tokens,
    }
    return changed(config, as_step, "benchmark").validate()


def as_read(batch: MicroBatch, settings: Row, device: torch.device) -> MicroBatch:
    """The micro-batch as a run's reader gives it: pixels in the precision, and in pinned memory beside a GPU."""
    if settings["precision"] == "bf16":
        pixels = batch.vision["pixel_values"].bfloat16()
        batch = replace(batch, vision=batch.vision | {"pixel_values": pixels})
    return batch.pinned() if device.type == "cuda" else batch


def _obstacle(step: Callable[[], None], optimizer: torch.optim.Optimizer) -> str | None:
    """Why a way has no step here: the GPU's memory does not suffice, in the worker or in the teacher, or it fails."""
    _, why = run_or_reason(lambda: step() is None)
    if why is not None:
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
    return why


def _way(
    name: str,
    student: Student,
    teachers: Teachers,
    batches: list[MicroBatch],
    optimizer: torch.optim.Optimizer,
) -> Callable[[], None]:
    """A function that takes one step in that way."""
    placement, look_ahead, transport = PLACES.get(name, ("in_process", 0, "object_store"))
    teacher = teachers.client(placement, transport) if name != "sft" else None
    if name.startswith("full_sequence"):
        teacher = _FullSequence(teacher.model, teacher.vocabulary)
    of_a_call = len(batches) if name.endswith("joined") else 1
    config = run_config(teachers.folder, placement, look_ahead, teachers.precision, transport, of_a_call)
    micro_batches = MicroBatches(config, student, teacher, teachers.device)
    if name == "full_sequence":
        return lambda: _full_sequence_step(micro_batches, batches, optimizer)
    if name == "full_sequence_all_logits":
        return lambda: _all_logits_step(micro_batches, batches, optimizer)
    return lambda: _step(micro_batches, batches, optimizer)


def _step(micro_batches: MicroBatches, batches: list[MicroBatch], optimizer: torch.optim.Optimizer) -> None:
    add_gradients(micro_batches, batches)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class _FullSequence(Teacher):
    """A teacher that reads everything itself: `states` has `hidden_MD` of each micro-batch, read when it is asked."""

    states: Iterator[torch.Tensor]

    def submit(self, request: Any) -> torch.Tensor:
        """Read the next micro-batch, whatever was donated: the ticket is the result."""
        return next(self.states)

    @torch.no_grad()
    def read(self, batch: MicroBatch) -> torch.Tensor:
        """Final hidden states `[B, T, D]` of the whole sequence."""
        known = self.output_head.vocabulary
        ids_BT = batch.input_ids_BT.clamp(max=known - 1).to(self.model.device)
        return self.decoder(input_ids=ids_BT, use_cache=False).last_hidden_state


def _full_sequence_step(
    micro_batches: MicroBatches, batches: list[MicroBatch], optimizer: torch.optim.Optimizer
) -> None:
    """As `_step`, the teacher reading every micro-batch whole."""
    teacher: Any = micro_batches.teacher
    teacher.states = (teacher.read(batch)[predicting(batch.supervised_BT, batch.sample_BT)] for batch in batches)
    _step(micro_batches, batches, optimizer)


def _all_logits_step(micro_batches: MicroBatches, batches: list[MicroBatch], optimizer: torch.optim.Optimizer) -> None:
    """Logits of every position on both sides, then cross-entropy and KL on the answers (TRL's GKD trainer)."""
    reader: Any = micro_batches.teacher
    student = micro_batches.student
    for batch in batches:
        predicts_BT = predicting(batch.supervised_BT, batch.sample_BT)
        inputs = model_inputs(batch).to(micro_batches.device)
        with micro_batches.autocast():
            hidden_BTD = student.body(**forward_arguments(student.body, inputs), use_cache=False).last_hidden_state
            logits_BTV = student.head(hidden_BTD)
        with torch.no_grad():
            teacher_BTU = reader.model.get_output_embeddings()(reader.read(batch))
        shared = teacher_BTU.shape[-1]
        log_s_NV, log_t_NU = logits_BTV[predicts_BT].float(), teacher_BTU[predicts_BT].float().log_softmax(-1)
        labels_N = inputs.input_ids_BT.roll(-1, 1)[predicts_BT]
        kd = F.kl_div(log_s_NV[:, :shared].log_softmax(-1), log_t_NU, reduction="batchmean", log_target=True)
        ((F.cross_entropy(log_s_NV, labels_N) + kd) / len(batches)).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def pair_of(settings: Row) -> Pair:
    """The pair that the settings name, or describe."""
    if settings["pair"] is not None:
        return named_pair(settings["pair"])
    return llama_pair(settings["layers"], settings["hidden"], settings["image_tokens"])


if __name__ == "__main__":
    run_command(main)
