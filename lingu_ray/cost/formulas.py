"""Operations and bytes of a run as formulas (see docs/scaling.md). A multiplication and an addition count as two."""

from __future__ import annotations

from dataclasses import dataclass

FLOAT32 = 4


@dataclass(frozen=True)
class Pair:
    """Sizes of student and teacher. `decoder`: weights that compute for a token, without embeddings; `tower`: weights
    of the vision tower; `tower_attention`: forward FLOPs of its attention for a patch.
    """

    decoder: float
    tower: float
    layers: int
    width: int
    vocabulary: int
    tower_attention: float = 0.0


@dataclass(frozen=True)
class Sample:
    """A mean row: tokens of tower, prompt (image tokens included) and answer; `distilled`: share of distilled rows."""

    tower_tokens: float
    prompt: float
    answer: float
    distilled: float


@dataclass(frozen=True)
class Passes:
    """Cost of each part in forward passes: 3 with its backward pass, 1 where it is frozen."""

    decoder: float = 3.0
    tower: float = 3.0


def student_flops(pair: Pair, sample: Sample, passes: Passes = Passes(), row_tokens: float | None = None) -> float:
    """Forward and backward pass of a sample: decoder, its attention, head on the answer, vision tower.

    `row_tokens`: length of the packed row over which attention runs; None: the sample has a row of its own.
    """
    tokens = sample.prompt + sample.answer
    decoder = 2 * pair.decoder * tokens + 2 * pair.layers * pair.width * tokens * (row_tokens or tokens)
    tower = (2 * pair.tower + pair.tower_attention) * sample.tower_tokens
    head = 6 * pair.vocabulary * pair.width * sample.answer
    return passes.decoder * decoder + passes.tower * tower + head


def teacher_flops(pair: Pair, sample: Sample) -> float:
    """The teacher's continuation and its head, of a mean sample."""
    attention = 4 * pair.layers * pair.width * sample.answer * (sample.prompt + sample.answer / 2)
    own = 2 * pair.decoder * sample.answer + attention + 2 * pair.vocabulary * pair.width * sample.answer
    return sample.distilled * own


def kv_bytes(layers: int, kv_heads: int, head_dim: int, tokens: float, number: int) -> float:
    """Keys and values of so many tokens; `number`: bytes of a number, as below."""
    return 2 * layers * kv_heads * head_dim * number * tokens


def all_reduce_bytes(trained: float, workers: int) -> float:
    """What each worker sends in a step to sum its gradients (a ring, float32)."""
    return 2 * (workers - 1) / workers * FLOAT32 * trained


def fsdp2_bytes(decoder: float, rest: float, workers: int, micro_batches: float, number: int) -> float:
    """What each worker sends in a step under FSDP2: weights gathered twice, gradients scattered, the rest summed."""
    share = (workers - 1) / workers
    return micro_batches * share * decoder * (2 * number + FLOAT32) + all_reduce_bytes(rest, workers)


def checkpoint_bytes(trained: float) -> float:
    """Trained weights, and two moments of each, in float32."""
    return 3 * FLOAT32 * trained
