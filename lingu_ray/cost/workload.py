"""The rows that an estimate assumes, and the micro-batches that a worker makes of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pydantic import Field, NonNegativeInt, PositiveInt

from lingu_ray.config import Config, RayConfig, Section
from lingu_ray.errors import UserError
from lingu_ray.runtime.cluster.autoscaler import fits


class RowConfig(Section):
    """A mean row. Counts of your own data: `lingu-ray inspect`."""

    image_tokens: NonNegativeInt | None = Field(
        None, description="image tokens of a row; null: one view of the vision tower; pictures cut into tiles have more"
    )
    text_tokens: NonNegativeInt = Field(192, description="text tokens of a row's prompt")
    answer_tokens: PositiveInt = Field(64, description="answer tokens of a row")


@dataclass(frozen=True)
class Workload:
    """What a worker computes in a step.

    `image_tokens`, `text_tokens`, `answer_tokens`: of a row. `rows`: of a micro-batch; `rows_of_step`: of this worker.
    `held_batches`: micro-batches whose activations are in memory at one time; `batches_per_call`: micro-batches that
    one call of the teacher answers. `distilled`: share of the rows with a KD term.
    """

    image_tokens: int
    text_tokens: int
    answer_tokens: int
    rows: int
    rows_of_step: int
    held_batches: int
    batches_per_call: int
    distilled: float
    bf16: bool
    on_gpu: bool

    @property
    def tokens(self) -> int:
        """Tokens of a row."""
        return self.image_tokens + self.text_tokens + self.answer_tokens

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step."""
        return math.ceil(self.rows_of_step / self.rows)

    @property
    def bytes_per_number(self) -> int:
        """Bytes of a number in matrix products and KV."""
        return 2 if self.bf16 else 4


def workload(config: Config, row: RowConfig, image_tokens_of_view: int, bf16: bool, on_gpu: bool) -> Workload:
    """What a worker computes where there are fewest workers, so that each has most rows.

    Raises:
        UserError: a row is longer than the settings allow.
    """
    image_tokens = image_tokens_of_view if row.image_tokens is None else row.image_tokens
    tokens = image_tokens + row.text_tokens + row.answer_tokens
    if tokens > config.corpus.max_length:
        raise UserError(
            f"a row of {image_tokens} image, {row.text_tokens} text and {row.answer_tokens} answer tokens is above "
            f"corpus.max_length={config.corpus.max_length}: raise that, or give image_tokens, text_tokens and "
            "answer_tokens of your rows"
        )
    rows_of_step = math.ceil(config.train.rows_per_step / config.ray.min_workers)
    rows = min(rows_of_step, config.train.tokens_per_micro_batch // tokens)
    batches = math.ceil(rows_of_step / rows)
    ahead = config.teacher.look_ahead
    if ahead is None:
        ahead = int(on_gpu and kv_transport(config) is not None)
    per_call = config.teacher.micro_batches_per_call
    return Workload(
        image_tokens=image_tokens,
        text_tokens=row.text_tokens,
        answer_tokens=row.answer_tokens,
        rows=rows,
        rows_of_step=rows_of_step,
        held_batches=min((1 + ahead) * per_call, batches),
        batches_per_call=min(per_call, batches),
        distilled=distilled_share(config),
        bf16=bf16,
        on_gpu=on_gpu,
    )


def distilled_share(config: Config) -> float:
    """Share of the rows with a KD term, by the sources' weights; without weights all sources count the same."""
    if not config.uses_teacher:
        return 0.0
    weights = {source.name: source.weight or 1.0 for source in config.training_sources()}
    return sum(weights[name] for name in config.distilled_sources() if name in weights) / sum(weights.values())


def workers_per_device(ray: RayConfig, on_gpu: bool, workers: int) -> int:
    """How many of a run's workers share a device: all of them a CPU, as many as Ray puts on it a GPU."""
    return min(workers, max(1, fits({"GPU": ray.gpus_per_worker}, {"GPU": 1.0}))) if on_gpu else workers


def kv_transport(config: Config) -> str | None:
    """The `teacher.transport` by which KV reaches a teacher in its own process; None where there is no such teacher."""
    has_process = config.uses_teacher and config.teacher.placement != "in_process"
    return config.teacher.transport if has_process else None
