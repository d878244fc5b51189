"""Two ways to treat a conversation's earlier answers: the student's KV of them, or KV that the teacher computes.

    make smollm2
    python -m benchmarks.earlier_turns out=docs/performance

Rows are conversations of three chats about Python's reference text. Each value of `teacher.earlier_turns` takes whole
optimizer steps, in turns with plain fine-tuning (`sft`); the teacher is in the worker. Without `student` the student is
a new VLM on the teacher, with a random tower: good for times and sizes, but its KD is 0 and left out.

    ratio_to_sft  processor time of a step over that of the plain steps before and after it
    MiB           KV that the student donates in a step
    parts         requests to the teacher: an answer each, or a conversation each
    kd            nats a token
    kd_off        mean absolute difference of a token's KD to that of `student`, over the mean of the latter
    gradient_off  length of the difference of KD's gradients, over the length of that of `student`
    held_out_ce   nats a token on other conversations after `train_steps` steps from the same start, by seed
"""

from __future__ import annotations

import random
import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from benchmarks.chats import TURNS, chat_rows, encode, pair_config
from benchmarks.one_step import add_gradients
from benchmarks.report import BenchmarkConfig, Row, Timing, measure_between, processor_seconds, publish
from benchmarks.terms import Terms, compute_terms, norm
from lingu_ray.config.command_line import settings_alone
from lingu_ray.config.help_pages import Help
from lingu_ray.corpus.batch import MicroBatch, make_micro_batches
from lingu_ray.corpus.encode import Sample
from lingu_ray.distill.student import Student
from lingu_ray.errors import run_command
from lingu_ray.passes import tokens_of_a_pass
from lingu_ray.paths import ModelPath
from lingu_ray.runtime.models.load import load_student, load_teacher
from lingu_ray.runtime.training.distributed import clip_gradients, zero_gradients
from lingu_ray.runtime.training.optimizer import make_optimizer, set_learning_rates, trained_parameters
from lingu_ray.runtime.training.step import MicroBatches

CPU = torch.device("cpu")
Way = Literal["sft", "student", "teacher"]
WAYS: tuple[Way, ...] = ("sft", "student", "teacher")


class EarlierTurnsConfig(BenchmarkConfig):
    """Settings of the benchmark."""

    repeats: PositiveInt = Field(3, description="rounds of timing")
    teacher: ModelPath = Field("models/SmolLM2-135M-Instruct", description="the causal LM: a folder or hub id")
    student: ModelPath | None = Field(None, description="a VLM that came from it; null: a new one")
    rows: PositiveInt = Field(2, description="conversations of a step")
    conversations: PositiveInt = Field(60, description="conversations to train on, and as many that are held out")
    train_steps: NonNegativeInt = Field(0, description="steps of each way's training; 0: none")
    seeds: PositiveInt = Field(1, description="trainings of each way, with other rows each")
    learning_rate: PositiveFloat = Field(1e-3, description="of projector and decoder, in training")


HELP = Help("python -m benchmarks.earlier_turns [key=value ...]", __doc__, EarlierTurnsConfig)


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    options = settings_alone(arguments, HELP)
    with tempfile.TemporaryDirectory() as folder:
        rows = Comparison(options, Path(folder)).rows()
    publish("earlier_turns", rows, options.out, options.recorded)


class Comparison:
    """The pair, its conversations, and what is measured of each way."""

    def __init__(self, options: EarlierTurnsConfig, folder: Path):
        self.options = options
        self.config = pair_config(options.teacher, options.student, folder)
        self.teacher = load_teacher(self.config.teacher, torch.float32, CPU)
        self.student = Student(load_student(self.config.student))
        self.start = {name: tensor.clone() for name, tensor in self.student.model.state_dict().items()}
        self.samples, self.pad_id = encode(self.config, chat_rows("turns", options.conversations * TURNS))
        self.held_out, _ = encode(self.config, chat_rows("turns", options.conversations * TURNS, "held_out"))

    def rows(self) -> list[Row]:
        """A row for each way."""
        timings = self._timings()
        terms = {way: self._terms(way) for way in WAYS[1:]} if self.options.student else {}
        held_out = {way: [self._trained(way, seed) for seed in range(self._trainings)] for way in WAYS}
        return [
            {
                "way": way,
                "ratio_to_sft": timings[way].median,
                "quartiles": timings[way].quartiles,
                **(self._donated(way) if way != "sft" else {}),
                **(_differences(terms[way], terms["student"]) if way in terms else {}),
                "held_out_ce": ", ".join(f"{ce:.4f}" for ce in held_out[way]) or None,
            }
            for way in WAYS
        ]

    @property
    def _trainings(self) -> int:
        return self.options.seeds if self.options.train_steps else 0

    def _micro_batches(self, way: Way) -> MicroBatches:
        teacher = self.config.teacher.model_copy(update={"earlier_turns": "student" if way == "sft" else way})
        config = self.config.model_copy(update={"teacher": teacher})
        return MicroBatches(config, self.student, None if way == "sft" else self.teacher, CPU)

    def _batches(self, samples: list[Sample]) -> list[MicroBatch]:
        return make_micro_batches(
            samples, self.config.train.tokens_per_micro_batch, self.pad_id, False, tokens_of_a_pass(CPU)
        )

    def _timings(self) -> dict[Way, Timing]:
        """Ratio of each way's step to the plain steps around it, round by round."""
        optimizer = make_optimizer(self.student, self.config.train)
        for group in optimizer.param_groups:
            group["lr"] = 0.0  # all steps are the same
        batches = self._batches(self.samples[: self.options.rows])
        steps = {way: partial(_step, self._micro_batches(way), batches, optimizer) for way in WAYS}
        found = {"sft": [1.0], "student": [], "teacher": []}
        others = {way: steps[way] for way in WAYS[1:]}
        for step in measure_between(steps["sft"], others, self.options.repeats, processor_seconds):
            found[step.name].append(step.seconds / step.beside)
        return {way: Timing(tuple(found[way])) for way in WAYS}

    def _terms(self, way: Way) -> Terms:
        batches = self._batches(self.samples[: self.options.rows])
        return compute_terms(self._micro_batches(way).step, batches, nullcontext())

    def _donated(self, way: Way) -> Row:
        """What the student donates in a step."""
        micro_batches = self._micro_batches(way)
        batches = self._batches(self.samples[: self.options.rows])
        plans = [plan for batch in batches if (plan := micro_batches.plan(batch)) is not None]
        decoder = self.student.decoder.config
        bytes_of_a_position = 2 * decoder.num_hidden_layers * decoder.num_key_value_heads * decoder.head_dim * 4
        return {
            "MiB": sum(len(plan.donated_row_C) for plan in plans) * bytes_of_a_position / 2**20,
            "parts": sum(len(plan.query.query_count_R) for plan in plans),
        }

    def _trained(self, way: Way, seed: int) -> float:
        """Cross-entropy on held-out conversations after training from the same start, on rows drawn by the seed."""
        self.student.model.load_state_dict(self.start)
        steps, rates = self.options.train_steps, self.config.train.learning_rates
        rate = {"projector": self.options.learning_rate, "decoder": self.options.learning_rate}
        settings = self.config.train.model_copy(
            update={"steps": steps, "learning_rates": rates.model_copy(update={"vision": 0.0, **rate})}
        )
        optimizer = make_optimizer(self.student, settings)
        micro_batches = self._micro_batches(way)
        chance = random.Random(seed)
        for step in range(steps):
            set_learning_rates(optimizer, step, settings)
            _step(micro_batches, self._batches(chance.sample(self.samples, self.options.rows)), optimizer)
        batches = self._batches(self.held_out)
        tokens = sum(int(sample.supervised_T.sum()) for sample in self.held_out)
        return sum(micro_batches.cross_entropy(batch) for batch in batches) / tokens


def _step(micro_batches: MicroBatches, batches: list[MicroBatch], optimizer: torch.optim.Optimizer) -> None:
    parameters = trained_parameters(optimizer)
    zero_gradients(parameters)
    add_gradients(micro_batches, batches)
    clip_gradients([parameter for parameter in parameters if parameter.grad is not None], 1.0)
    optimizer.step()


def _differences(terms: Terms, default: Terms) -> Row:
    """KD, and the differences of KD and its gradient to those of the default way."""
    apart = [a - b for a, b in zip(terms.gradients["kd"], default.gradients["kd"], strict=True)]
    return {
        "kd": float(terms.kd_M.mean()),
        "kd_off": float((terms.kd_M - default.kd_M).abs().mean() / default.kd_M.mean()),
        "gradient_off": norm(apart) / norm(default.gradients["kd"]),
    }


if __name__ == "__main__":
    run_command(main)
