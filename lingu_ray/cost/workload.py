"""The rows that a run is assumed to train on, and how its settings cut them into micro-batches."""

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

    `rows`: of a micro-batch; `rows_of_step`: of this worker; `alive`: micro-batches whose activations are in memory at
    one time; `of_a_call`: those that the teacher is asked about in one call; `distilled`: share of the rows with a KD
    term; `bf16`, `on_gpu`: where and how it computes.
    """

    image_tokens: int
    text_tokens: int
    answer_tokens: int
    rows: int
    rows_of_step: int
    alive: int
    of_a_call: int
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
    def number(self) -> int:
        """Bytes of a number in products and KV."""
        return 2 if self.bf16 else 4


def workload(config: Config, row: RowConfig, image_tokens_of_view: int, bf16: bool, on_gpu: bool) -> Workload:
    """The rows of a worker, of which the fewest workers have most.

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
    ahead = config.teacher.look_ahead
    if ahead is None:
        ahead = int(on_gpu and travels_by(config) is not None)
    return Workload(
        image_tokens=image_tokens,
        text_tokens=row.text_tokens,
        answer_tokens=row.answer_tokens,
        rows=rows,
        rows_of_step=rows_of_step,
        alive=min((1 + ahead) * config.teacher.micro_batches_per_call, math.ceil(rows_of_step / rows)),
        of_a_call=min(config.teacher.micro_batches_per_call, math.ceil(rows_of_step / rows)),
        distilled=distilled_share(config),
        bf16=bf16,
        on_gpu=on_gpu,
    )


def distilled_share(config: Config) -> float:
    """Share of the rows with a KD term, by the sources' weights; without weights sources count alike."""
    if not config.uses_teacher:
        return 0.0
    weights = {source.name: source.weight or 1.0 for source in config.training_sources()}
    return sum(weights[name] for name in config.distilled_sources() if name in weights) / sum(weights.values())


def sharing(ray: RayConfig, on_gpu: bool, workers: int) -> int:
    """How many of so many workers have one device: all of them a CPU, those that Ray gives a share of it a GPU."""
    return min(workers, max(1, fits({"GPU": ray.gpus_per_worker}, {"GPU": 1.0}))) if on_gpu else workers


def travels_by(config: Config) -> str | None:
    """How the KV reaches a teacher in a process of its own, a name of `teacher.transport`; None: there is none."""
    apart = config.uses_teacher and config.teacher.placement != "in_process"
    return config.teacher.transport if apart else None
