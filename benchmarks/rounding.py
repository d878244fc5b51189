"""KD that rounding alone causes, for a student whose decoder equals the teacher: in exact arithmetic it would be 0.

    make smollm2
    python -m benchmarks.rounding out=docs/performance

The student is a new VLM on the teacher, with a random tower, before any training. Whatever is donated, both compute the
same numbers in another order. With `train.precision=bf16` the precision differs, too: the student's weights and the
sums between its layers are float32, the teacher's are bfloat16.

    rows       chats about Python's reference text: as they are, after a picture (of noise), three in a conversation
    donated    the whole prompt (`teacher.scope` full), its image tokens alone (visual; nothing, where there are none),
               or the prompt without earlier answers (full, with `teacher.earlier_turns` teacher)
    kd, p99    nats a token, mean and 99th percentile
    gradient   norm of KD's gradient over that of cross-entropy's, both of all rows together; the tower is frozen
    of_start   KD as a share of what it is at the start of a real run, `start`
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import get_args

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from tqdm import tqdm

from benchmarks.chats import Kind, chat_rows, encode, pair_config
from benchmarks.report import BenchmarkConfig, Row, publish
from benchmarks.terms import compute_terms, norm
from lingu_ray.config.command_line import settings_alone
from lingu_ray.config.help_pages import Help
from lingu_ray.corpus.batch import make_micro_batches
from lingu_ray.distill.divergence import forward_kl
from lingu_ray.distill.donation import EarlierTurns, Scope
from lingu_ray.distill.step import DistillStep
from lingu_ray.distill.student import Student
from lingu_ray.errors import run_command
from lingu_ray.passes import tokens_of_a_pass
from lingu_ray.paths import ModelPath
from lingu_ray.runtime.models.load import load_student, load_teacher

CASES: tuple[tuple[Kind, str, Scope, EarlierTurns], ...] = (
    ("text", "prompt", "full", "student"),
    ("images", "prompt", "full", "student"),
    ("turns", "prompt", "full", "student"),
    ("text", "nothing", "visual", "student"),
    ("images", "image tokens", "visual", "student"),
    ("turns", "prompt without earlier answers", "full", "teacher"),
)
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


class RoundingConfig(BenchmarkConfig):
    """Settings of the benchmark."""

    teacher: ModelPath = Field("models/SmolLM2-135M-Instruct", description="the causal LM: a folder or hub id")
    chats: PositiveInt = Field(24, description="chats of each kind of rows")
    tokens_per_micro_batch: PositiveInt = Field(2048, description="as train.tokens_per_micro_batch")
    start: PositiveFloat = Field(0.204, description="KD as a real run starts, nats a token (results/random_tower.md)")


HELP = Help("python -m benchmarks.rounding [key=value ...]", __doc__, RoundingConfig)


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    options = settings_alone(arguments, HELP)
    with tempfile.TemporaryDirectory() as folder:
        rows = list(tqdm(_measure(options, Path(folder)), total=len(CASES) * len(PRECISIONS), unit="case"))
    publish("rounding", rows, options.out, options.recorded)


def _measure(options: RoundingConfig, folder: Path) -> Iterator[Row]:
    """A row for each case and precision."""
    config = pair_config(options.teacher, None, folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_student(config.student)
    torch.nn.Module.to(model, device)
    student = Student(model)
    for _, parameter in student.parameter_groups()["vision"]:
        parameter.requires_grad_(False)  # as it is where a VLM is distilled
    encoded = {kind: encode(config, chat_rows(kind, options.chats)) for kind in get_args(Kind)}
    for precision, dtype in PRECISIONS.items():
        teacher = load_teacher(config.teacher, dtype, device)
        autocast = nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)
        for kind, donated, scope, earlier_turns in CASES:
            samples, pad_id = encoded[kind]
            batches = make_micro_batches(
                samples, options.tokens_per_micro_batch, pad_id, False, tokens_of_a_pass(device)
            )
            step = DistillStep(student, teacher, forward_kl, "shared_kv", scope, earlier_turns)
            terms = compute_terms(step, batches, autocast)
            kd = float(terms.kd_M.mean())
            yield {
                "precision": precision,
                "rows": kind,
                "donated": donated,
                "tokens": len(terms.kd_M),
                "kd": kd,
                "p99": float(terms.kd_M.quantile(0.99)),
                "gradient": norm(terms.gradients["kd"]) / norm(terms.gradients["ce"]),
                "of_start": kd / options.start,
            }


if __name__ == "__main__":
    run_command(main)
