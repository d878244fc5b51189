"""What the teacher costs a training step: plain fine-tuning, a full-sequence teacher, and the KV-shared one.

    python -m benchmarks.step out=docs/performance

Each way takes one optimizer step over the same micro-batches of image questions, all of them distilled: the worst case
for the teacher. The decoder has SmolLM2-135M's shapes with random weights; the vision tower is kept small, so that the
student's own work does not hide the teacher's. Rows:

    sft                      cross-entropy alone: the ratio's 1
    full_sequence            a teacher that reads the whole sequence in the worker and makes logits of the answers alone
    full_sequence_all_logits the same, student and teacher making logits of every position, as TRL's GKD trainer does
    in_process               the KV-shared teacher in the worker
    actor_0, _1, _2          the KV-shared teacher in an actor, with look-ahead 0, 1 and 2 (of the step's micro-batches)

All runs in one Ray task, so that worker and teacher have the priority that they have in training. Every way is timed
between two steps of `sft` and compared with their mean, so that a machine whose speed drifts does not tell against one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import ray
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from tqdm import tqdm
from transformers import Idefics3Config, Idefics3ForConditionalGeneration, LlamaConfig, LlamaForCausalLM

from benchmarks.report import BenchmarkConfig, Measured, Row, Timing, measure_between, plot_bars, publish, ratios
from lingu_ray.config import Config, Several
from lingu_ray.config.command_line import settings_alone
from lingu_ray.config.help_pages import Help
from lingu_ray.corpus.batch import MicroBatch, collate
from lingu_ray.corpus.encode import Sample
from lingu_ray.distill.donation import predicting
from lingu_ray.distill.inputs import forward_arguments
from lingu_ray.distill.student import Student
from lingu_ray.distill.teacher import InProcessTeacher, Teacher, TeacherClient
from lingu_ray.errors import run_command
from lingu_ray.runtime.cluster import connect
from lingu_ray.runtime.models import load_teacher
from lingu_ray.runtime.step import MicroBatches, model_inputs
from lingu_ray.runtime.teachers import make_teacher

VOCABULARY, ADDED = 49152, 128
IMAGE_TOKEN = VOCABULARY
Way = Literal["full_sequence", "full_sequence_all_logits", "in_process", "actor_0", "actor_1", "actor_2"]


class StepConfig(BenchmarkConfig):
    """Settings of the benchmark."""

    repeats: PositiveInt = Field(3, description="rounds of timing")
    ways: Several[Way] = Field(get_args(Way), description="what is timed beside plain fine-tuning")
    rows: PositiveInt = Field(8, description="rows of a micro-batch")
    micro_batches: PositiveInt = Field(3, description="micro-batches of a step")
    image_tokens: PositiveInt = Field(256, description="image tokens of a row, a square")
    text_tokens: PositiveInt = Field(32, description="question tokens")
    answer_tokens: PositiveInt = Field(32, description="answer tokens")
    layers: PositiveInt = Field(30, description="decoder layers; SmolLM2-135M has 30")
    hidden: PositiveInt = Field(576, multiple_of=192, description="decoder width")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="as train.precision")


HELP = Help("python -m benchmarks.step [key=value ...]", __doc__, StepConfig)


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    options = settings_alone(arguments, HELP, StepConfig)
    settings = options.recorded
    config = run_config("unused", "in_process", 0, options.precision)
    connect(config.ray)
    gpus = 1 if torch.cuda.is_available() else 0
    task: Any = ray.remote(num_cpus=1, num_gpus=gpus, num_returns="streaming")(_measure)
    steps: list[Measured] = []
    with tqdm(total=len(settings["ways"]) * settings["repeats"], unit="step", desc="after warm-up") as bar:
        for reference in task.remote(settings):
            steps.append(ray.get(reference))
            bar.update()
    rows = [_row(way, steps, settings) for way in ("sft", *settings["ways"])]
    publish("step", rows, options.out, settings)
    if options.out is not None:
        plot(rows, options.out / "step.png")


def plot(rows: list[Row], path: Path) -> None:
    """A bar for each way."""
    ways = [row["way"].replace("_", "\n") for row in rows]
    heights = {"one optimizer step": [row["ratio_to_sft"] for row in rows]}
    plot_bars(path, "What a teacher costs", "time over plain fine-tuning", ways, heights, ("plain fine-tuning", 1.0))


def _row(way: str, steps: list[Measured], settings: Row) -> Row:
    """A way's steps against the steps of `sft` around them."""
    sft = Timing(tuple(step.beside for step in steps if way in (step.name, "sft")))
    timing = sft if way == "sft" else Timing(tuple(step.seconds for step in steps if step.name == way))
    rows = settings["rows"] * settings["micro_batches"]
    tokens = rows * (settings["image_tokens"] + settings["text_tokens"] + settings["answer_tokens"])
    over_sft = ratios(timing, sft)
    low, high = over_sft.spread
    return {
        "way": way,
        "ratio_to_sft": over_sft.median,
        "quartiles": f"{low:.3g}–{high:.3g}",
        "median_s": timing.median,
        "tokens_per_s": tokens / timing.median,
    }


def _measure(settings: Row) -> Iterator[Measured]:
    """Time every way between steps of plain fine-tuning."""
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = settings["precision"]
    student = random_student(settings).to(device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-6)
    batches = [_micro_batch(settings, seed) for seed in range(settings["micro_batches"])]
    with tempfile.TemporaryDirectory() as folder:
        _teacher(settings).save_pretrained(folder)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        local = load_teacher(run_config(folder, "in_process", 0, precision).teacher, dtype, device)
        actor = make_teacher(run_config(folder, "actor", 0, precision).teacher, dtype, device, torch.get_num_threads())

        def way(teacher: TeacherClient | None, look_ahead: int = 0) -> Callable[[], None]:
            config = run_config(folder, "actor", look_ahead, precision)
            micro_batches = MicroBatches(config, Student(student), teacher, device)
            return lambda: _step(micro_batches, batches, optimizer)

        full = MicroBatches(run_config(folder, "actor", 0, precision), Student(student), _FullSequence(local), device)
        ways = {
            "full_sequence": lambda: _full_sequence_step(full, batches, optimizer),
            "full_sequence_all_logits": lambda: _all_logits_step(full, batches, optimizer, local),
            "in_process": way(InProcessTeacher(local)),
            **{f"actor_{ahead}": way(actor, ahead) for ahead in (0, 1, 2)},
        }
        yield from measure_between(way(None), {name: ways[name] for name in settings["ways"]}, settings["repeats"])


def _step(micro_batches: MicroBatches, batches: list[MicroBatch], optimizer: torch.optim.Optimizer) -> None:
    plans = [micro_batches.plan(batch) for batch in batches]
    micro_batches.run(batches, plans, micro_batches.weights(0.0, batches, plans))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class _FullSequence(InProcessTeacher):
    """A teacher that reads everything itself: `states` has `hidden_MD` of each micro-batch, read when it is asked."""

    states: Iterator[torch.Tensor]

    def submit(self, request: Any) -> torch.Tensor:
        """Read the next micro-batch, whatever was donated: the ticket is the result."""
        return next(self.states)

    @torch.no_grad()
    def read(self, batch: MicroBatch) -> torch.Tensor:
        """Final hidden states `[B, T, D]` of the whole sequence."""
        ids_BT = batch.input_ids_BT.clamp(max=VOCABULARY - 1).to(self.teacher.model.device)
        return self.teacher.decoder(input_ids=ids_BT, use_cache=False).last_hidden_state


def _full_sequence_step(
    micro_batches: MicroBatches, batches: list[MicroBatch], optimizer: torch.optim.Optimizer
) -> None:
    """As `_step`, the teacher reading every micro-batch whole."""
    teacher: Any = micro_batches.teacher
    teacher.states = (teacher.read(batch)[predicting(batch.supervised_BT, batch.sample_BT)] for batch in batches)
    _step(micro_batches, batches, optimizer)


def _all_logits_step(
    micro_batches: MicroBatches, batches: list[MicroBatch], optimizer: torch.optim.Optimizer, teacher: Teacher
) -> None:
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
            teacher_BTU = teacher.model.get_output_embeddings()(reader.read(batch))
        shared = teacher_BTU.shape[-1]
        log_s_NV, log_t_NU = logits_BTV[predicts_BT].float(), teacher_BTU[predicts_BT].float().log_softmax(-1)
        labels_N = inputs.input_ids_BT.roll(-1, 1)[predicts_BT]
        kd = F.kl_div(log_s_NV[:, :shared].log_softmax(-1), log_t_NU, reduction="batchmean", log_target=True)
        ((F.cross_entropy(log_s_NV, labels_N) + kd) / len(batches)).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def random_text(position: int, tokens: int) -> Sample:
    """A text of random ids; the second half is its answer."""
    ids_T = torch.randint(VOCABULARY, (tokens,), generator=torch.Generator().manual_seed(position))
    supervised_T = torch.arange(tokens) >= tokens // 2
    return Sample("images", position, ids_T, supervised_T, torch.zeros_like(supervised_T), {})


def random_student(settings: Row) -> Idefics3ForConditionalGeneration:
    """A student of the settings' decoder shapes with random weights and a small tower."""
    text = _decoder(settings) | {"vocab_size": VOCABULARY + ADDED, "model_type": "llama"}
    side = round(settings["image_tokens"] ** 0.5)
    tower = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = tower | {"image_size": side * 4, "patch_size": 4}
    config = Idefics3Config(
        text_config=text, vision_config=vision, scale_factor=1, image_token_id=IMAGE_TOKEN, tie_word_embeddings=True
    )
    return Idefics3ForConditionalGeneration(config).train()


def _teacher(settings: Row) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**_decoder(settings)))


def _decoder(settings: Row) -> Row:
    """SmolLM2-135M's decoder at the default width and depth."""
    heads = settings["hidden"] // 64
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": settings["hidden"],
        "intermediate_size": settings["hidden"] * 8 // 3,
        "num_hidden_layers": settings["layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 3,
        "tie_word_embeddings": True,
    }


def _micro_batch(settings: Row, seed: int) -> MicroBatch:
    """Random rows: image, question, answer."""
    generator = torch.Generator().manual_seed(seed)
    side = round(settings["image_tokens"] ** 0.5)

    def sample(position: int) -> Sample:
        image_T = torch.full((side**2,), IMAGE_TOKEN)
        words = settings["text_tokens"] + settings["answer_tokens"]
        ids_T = torch.cat([image_T, torch.randint(VOCABULARY, (words,), generator=generator)])
        supervised_T = torch.arange(len(ids_T)) >= len(ids_T) - settings["answer_tokens"]
        pixels = torch.randn(1, 1, 3, side * 4, side * 4, generator=generator)
        vision = {"pixel_values": pixels, "pixel_attention_mask": torch.ones(1, 1, side * 4, side * 4).long()}
        return Sample("images", position, ids_T, supervised_T, ids_T == IMAGE_TOKEN, vision)

    return collate([sample(position) for position in range(settings["rows"])], pad_id=0)


def run_config(teacher: str, placement: str, look_ahead: int, precision: str) -> Config:
    """Settings of a run; its student is made here."""
    return Config.model_validate(
        {
            "name": "benchmark",
            "student": {"path": "made here"},
            "teacher": {"path": teacher, "placement": placement, "look_ahead": look_ahead},
            "corpus": {"sources": [{"name": "images", "format": "text", "path": "made here", "language_heavy": True}]},
            "train": {"precision": precision},
        }
    )


if __name__ == "__main__":
    run_command(main)
