"""What `lingu-ray estimate` says beside what processes take: memory, operations and time of real steps on this CPU.

    python -m benchmarks.estimate                            all cases, some minutes
    python -m benchmarks.estimate cases=tiny,small_bf16 out=FOLDER

Each case is a pair with random weights that takes steps on random rows, teacher in the worker, in a process of its own.
Columns: `counted` there, `estimate` from configurations alone, and their `ratio`; rows of a case:

    parameters          of the student
    kept, MiB           by autograd for the backward pass of a micro-batch, by hooks on the real pass
    KV, MiB             that a step's rows donated
    teacher, MiB        at the peak of its pass, beside its weights and the KV
    tensors, MiB        at the peak of two steps, models and optimizer with them
    resident, MiB       how much the process grew meanwhile (Linux): with what the allocator loses between tensors
    operations, GFLOP   of a step, by torch's counter: products and attention, of which half is masked
    step, s             the shortest of three

`within` says whether the estimate is within 15 %. The time's rates are measured when the estimate is made, so on a busy
machine it says little.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.one_step import add_gradients
from benchmarks.pairs import Pair, idefics3_pair, llama
from benchmarks.report import BenchmarkConfig, Row, publish, seconds_of
from benchmarks.resident import Growth
from lingu_ray.config import Config, Several
from lingu_ray.config.command_line import settings_alone
from lingu_ray.config.help_pages import Help
from lingu_ray.corpus.batch import MicroBatch, collate
from lingu_ray.corpus.encode import Sample
from lingu_ray.cost.estimate import Estimate, estimate
from lingu_ray.cost.memory import FRAGMENTATION, kv_of_rows, pass_memory, rounded_weights, teacher_pass_memory, worker
from lingu_ray.cost.trace import LiveBytes
from lingu_ray.cost.workload import RowConfig
from lingu_ray.distill.continuation import TeacherRequest
from lingu_ray.distill.student import Student
from lingu_ray.distill.teacher import Teacher
from lingu_ray.errors import UserError, run_command
from lingu_ray.runtime.cluster.linux import cores
from lingu_ray.runtime.training.optimizer import make_optimizer
from lingu_ray.runtime.training.prepare import prepare
from lingu_ray.runtime.training.step import MicroBatches, model_inputs

MIB = 2**20
NEAR = 0.15
IMAGE_TOKENS = 16  # of a row: one view of 8 × 8 patches, four patches a token
Figures = dict[str, float]


@dataclass(frozen=True)
class Case:
    """A pair and a step: sizes of decoder and tower, rows, and settings of `train` and `teacher`; `dtype`: of the
    student's files.
    """

    hidden: int
    layers: int
    vocabulary: int = 4096
    tower: int = 64
    rows: int = 8
    micro_batches: int = 2
    text: int = 160
    answer: int = 32
    train: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32

    @property
    def tokens(self) -> int:
        """Of the longest rows."""
        return IMAGE_TOKENS + self.text + self.answer

    @property
    def pair(self) -> Pair:
        """Its models, without weights."""
        heads = (9, 3) if self.hidden == 576 else (self.hidden // 32, self.hidden // 64)
        teacher = llama(self.hidden, self.hidden * 8 // 3, self.layers, *heads, self.vocabulary)
        sizes = {"hidden_size": self.tower, "intermediate_size": 4 * self.tower, "num_hidden_layers": 4}
        tower = sizes | {"num_attention_heads": self.tower // 32, "image_size": 64, "patch_size": 8}
        pair = idefics3_pair(teacher, 4, tower, scale_factor=2)
        pair.student.dtype = self.dtype
        return pair

    def batches(self) -> list[MicroBatch]:
        """The micro-batches of a step."""
        samples = [self._samples(seed) for seed in range(self.micro_batches)]
        return [collate(of_batch, 0, packing=self.train.get("packing", False)) for of_batch in samples]

    def _samples(self, seed: int) -> list[Sample]:
        """Random rows; the last one is a token shorter, so that there is padding."""
        pair, generator = self.pair, torch.Generator().manual_seed(seed)
        sizes = {"image_tokens": IMAGE_TOKENS, "text_tokens": self.text, "answer_tokens": self.answer}
        shorter = sizes | {"text_tokens": self.text - 1}
        return [pair.sample(shorter if row == self.rows - 1 else sizes, row, generator) for row in range(self.rows)]


TOWER = {"vision": 1e-5, "projector": 1e-5, "decoder": 1e-5}
CASES = {
    "tiny": Case(64, 2, vocabulary=512, rows=4),
    "small": Case(192, 6),
    "small_bf16": Case(192, 6, train={"precision": "bf16"}),
    "small_checkpointing": Case(192, 6, train={"gradient_checkpointing": True}),
    "small_packed": Case(192, 6, train={"packing": True}),
    "small_lora": Case(192, 6, train={"lora": {"rank": 8}}),
    "small_lora_bf16": Case(192, 6, train={"lora": {"rank": 8}, "precision": "bf16"}, dtype=torch.bfloat16),
    "small_tower": Case(192, 6, tower=512, train={"learning_rates": TOWER}),
    "smollm2_135m_checkpointing": Case(
        576, 30, vocabulary=49152, rows=4, micro_batches=1, train={"gradient_checkpointing": True}
    ),
    "smollm2_135m": Case(576, 30, vocabulary=49152, rows=4, micro_batches=1),
    "smollm2_135m_bf16": Case(576, 30, vocabulary=49152, rows=4, micro_batches=1, train={"precision": "bf16"}),
}


def _half(forward_or_backward: Any) -> Any:
    return lambda *shapes, **_: forward_or_backward(*[s for s in shapes if isinstance(s, torch.Size)]) // 2


aten = torch.ops.aten
NOT_COUNTED = {
    aten.addmm_: lambda _sum, a, b, **_: 2 * a[0] * a[1] * b[1],
    aten._scaled_dot_product_flash_attention_for_cpu: _half(
        lambda query, key, value, *_: flop_counter.sdpa_flop_count(query, key, value)
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _half(
        lambda grad, query, key, value, *_: flop_counter.sdpa_backward_flop_count(grad, query, key, value)
    ),
}
"""Formulas for operations that torch's FLOP counter does not know."""


class EstimateBenchConfig(BenchmarkConfig):
    """Settings of the benchmark."""

    cases: Several[str] = Field(tuple(CASES), description=f"of {', '.join(CASES)}")


HELP = Help("python -m benchmarks.estimate [key=value ...]", __doc__, EstimateBenchConfig)


def main(arguments: list[str]) -> None:
    """Estimate, measure, compare and publish."""
    options = settings_alone(arguments, HELP)
    if unknown := set(options.cases) - CASES.keys():
        raise UserError(f"cases={','.join(sorted(unknown))}: there are {', '.join(CASES)}")
    rows = [row for name in options.cases for row in compare(name)]
    publish("estimate", rows, options.out, options.recorded)


def compare(name: str) -> list[Row]:
    """The rows of a case."""
    with tempfile.TemporaryDirectory() as folder:
        CASES[name].pair.student.save_pretrained(Path(folder) / "student")
        CASES[name].pair.teacher.save_pretrained(Path(folder) / "teacher")
        told = estimated(CASES[name], folder)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found = pool.submit(counted, name, folder).result()
    return [
        {
            "case": name,
            "what": what,
            "counted": found[what],
            "estimate": told[what],
            "ratio": (ratio := told[what] / found[what]),
            "within": "yes" if abs(ratio - 1) <= NEAR else "no",
        }
        for what in found
    ]


def run_config(case: Case, folder: str) -> Config:
    """The settings of a run of the case, teacher in the worker, all rows distilled."""
    settings = {"tokens_per_micro_batch": case.rows * case.tokens, "rows_per_step": case.rows * case.micro_batches}
    source = {"name": "images", "format": "text", "path": "made here", "language_heavy": True}
    return Config.model_validate(
        {
            "name": "benchmark",
            "student": {"path": f"{folder}/student"},
            "teacher": {"path": f"{folder}/teacher", "placement": "in_process"} | case.teacher,
            "corpus": {"sources": [source], "max_length": case.tokens},
            "train": settings | case.train,
        }
    )


def estimated(case: Case, folder: str) -> Figures:
    """The estimate's figures."""
    row = RowConfig(image_tokens=IMAGE_TOKENS, text_tokens=case.text, answer_tokens=case.answer)
    found: Estimate = estimate(run_config(case, folder), row, "cpu")
    run, passes = found.run, pass_memory(found.run)
    items = worker(run, passes).items
    (behind,) = [place for place, item in enumerate(items) if item.what == FRAGMENTATION]
    tensors, lost = [item.bytes / MIB for item in items[:behind]], items[behind].bytes / MIB
    return {
        "parameters": sum(found.models.parameters.values()),
        "kept, MiB": (passes.decoder.kept + passes.tower.kept + rounded_weights(run, passes)) / MIB,
        "KV, MiB": kv_of_rows(run, found.load.rows_of_step) / MIB,
        "teacher, MiB": teacher_pass_memory(run) / MIB,
        "tensors, MiB": sum(tensors),
        "resident, MiB": sum(tensors) + lost,
        "operations, GFLOP": sum(found.time.flops.values()) / 1e9,
        "step, s": found.time.total,
    }


def counted(name: str, folder: str) -> Figures:
    """The figures counted in a process of its own, which makes the models and takes steps."""
    case = CASES[name]
    torch.set_num_threads(cores())
    Run(replace(CASES["tiny"], train=case.train), folder).step()  # code is loaded, and kernels are made
    batches = case.batches()
    with LiveBytes() as live, Growth() as resident:
        run = Run(case, folder, batches)
        run.step()
        kv = run.step()
    seconds = min(seconds_of(run.step) for _ in range(3))
    with FlopCounterMode(display=False, custom_mapping=NOT_COUNTED) as flops:
        run.step()
    return {
        "parameters": sum(parameter.numel() for parameter in run.passes.student.model.parameters()),
        "kept, MiB": kept_bytes(run.passes, batches[0]) / MIB,
        "KV, MiB": kv / MIB,
        "teacher, MiB": run.teacher.peak / MIB,
        "tensors, MiB": live.peak / MIB,
        "resident, MiB": resident.mib,
        "operations, GFLOP": flops.get_total_flops() / 1e9,
        "step, s": seconds,
    }


class WatchedTeacher(Teacher):
    """A teacher in this process; `peak`: most bytes that its own tensors took at one time."""

    peak = 0

    def submit(self, request: TeacherRequest) -> torch.Tensor:
        """The teacher's answer, with its memory counted."""
        with LiveBytes() as live:
            hidden_MD = super().submit(request)
        self.peak = max(self.peak, live.peak)
        return hidden_MD


class Run:
    """A pair with random weights, its optimizer, and the micro-batches of a step."""

    def __init__(self, case: Case, folder: str, batches: list[MicroBatch] | None = None):
        config = run_config(case, folder)
        dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
        torch.manual_seed(0)
        student = Student(case.pair.make_student().to(case.dtype).float())
        self.teacher = WatchedTeacher(case.pair.make_teacher().to(dtype))
        prepare(student, config.train, torch.device("cpu"), config.seed)
        self.optimizer = make_optimizer(student, config.train)
        self.passes = MicroBatches(config, student, self.teacher, torch.device("cpu"))
        self.batches = case.batches() if batches is None else batches

    def step(self) -> int:
        """Take an optimizer step; returns the bytes of the donated KV."""
        sums = add_gradients(self.passes, self.batches)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        return sums.kv_bytes


def kept_bytes(passes: MicroBatches, batch: MicroBatch) -> int:
    """Bytes that the student's forward pass saves for its backward pass, without weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in passes.student.model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with passes.autocast(passes.rounds_once), saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden_BTD, _ = passes.student.hidden_states(model_inputs(batch))
    del hidden_BTD
    return sum(saved.values())


if __name__ == "__main__":
    run_command(main)
