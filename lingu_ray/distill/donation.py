"""Which positions are donated, which the teacher computes, and which of those carry a KD term.

A position is *donated* (its K and V come from the student) or a *query* (the teacher computes it). A query q may attend
to position k of the same sample where k ≤ q; keys are the student's on donated positions, the teacher's own on queries.
The first answer token is predicted from the last prompt position, so that position is a query (paper, section 3).

A micro-batch `[B, T]` holds a sample a row, padded on the right, or several samples a row, packed one after another.
`sample_BT` says which is which; here all is reckoned over its K tokens, sample after sample, so both are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Scope = Literal["full", "visual"]
Context = Literal["shared_kv", "prompt_text"]


@dataclass(frozen=True)
class Questions:
    """What a teacher is asked about S distilled samples; items are concatenated, sample after sample, in order.

    `donated_place_P`: where in its sample each donated position stands. `donated_count_S`: how many a sample has.
    `query_id_Q`, `query_place_Q`, `query_count_S`: token ids, places and counts of the queries.
    `predicts_Q`: the M queries whose next token is supervised.
    `width`: longest sample of the micro-batch, as a tensor; the teacher lays its keys out as wide, so that its sums run
    as the student's do.
    """

    donated_place_P: Tensor
    donated_count_S: Tensor
    query_id_Q: Tensor
    query_place_Q: Tensor
    query_count_S: Tensor
    predicts_Q: Tensor
    width: Tensor


@dataclass(frozen=True)
class Donation:
    """The plan for one micro-batch: the questions, and where their positions stand in `[B, T]`.

    `answered_N`: of the micro-batch's N supervised tokens, in row-major order, those that get a KD term.
    """

    questions: Questions
    donated_row_P: Tensor
    donated_column_P: Tensor
    query_row_Q: Tensor
    query_column_Q: Tensor
    answered_N: Tensor

    @property
    def tokens(self) -> int:
        """M, the number of tokens with a KD term."""
        return int(self.questions.predicts_Q.sum())


def predicting(supervised_BT: Tensor, sample_BT: Tensor) -> Tensor:
    """`[B, T]` bool: positions whose *next* token is supervised (the shift by one), within their sample."""
    predicts_BT = torch.zeros_like(supervised_BT)
    predicts_BT[:, :-1] = supervised_BT[:, 1:] & (sample_BT[:, 1:] == sample_BT[:, :-1])
    return predicts_BT


def places(sample_BT: Tensor) -> Tensor:
    """`[B, T]` int64: each position's place in its sample, from 0; 0 on padding."""
    columns_BT = torch.arange(sample_BT.shape[1], device=sample_BT.device).expand_as(sample_BT)
    starts_BT = torch.ones_like(sample_BT, dtype=torch.bool)
    starts_BT[:, 1:] = sample_BT[:, 1:] != sample_BT[:, :-1]
    start_BT = torch.where(starts_BT, columns_BT, 0).cummax(1).values
    return (columns_BT - start_BT).masked_fill(sample_BT < 0, 0)


def plan_donation(
    input_ids_BT: Tensor,
    sample_BT: Tensor,
    supervised_BT: Tensor,
    visual_BT: Tensor,
    distill_S: Tensor,
    teacher_vocabulary: int,
    context: Context = "shared_kv",
    scope: Scope = "full",
) -> Donation | None:
    """Plan the donation of one micro-batch; None when none of its tokens gets a KD term.

    `sample_BT`: number of the sample that a position belongs to, -1 on padding; ascending in row-major order.
    `distill_S`: which samples are distilled.
    `context="prompt_text"` is the ablation without sharing: nothing is donated, the teacher reads the text alone and
    places are renumbered without the visual ones. Tokens that the teacher's vocabulary lacks are never queries.
    """
    row_K, column_K = (sample_BT >= 0).nonzero(as_tuple=True)
    sample_K, place_K = sample_BT[row_K, column_K], places(sample_BT)[row_K, column_K]
    ids_K, visual_K = input_ids_BT[row_K, column_K], visual_BT[row_K, column_K]
    predicts_K = predicting(supervised_BT, sample_BT)[row_K, column_K]
    known_K = (ids_K < teacher_vocabulary) & ~visual_K
    judged_K = predicts_K & known_K & distill_S[sample_K]
    if not judged_K.any():
        return None
    samples = len(distill_S)
    last_S = torch.full((samples,), -1).scatter_reduce(0, sample_K[judged_K], place_K[judged_K], "amax")
    seen_K = place_K <= last_S[sample_K]
    if context == "prompt_text":
        query_K, donated_K = seen_K & known_K, torch.zeros_like(seen_K)
        before_S = torch.bincount(sample_K[query_K], minlength=samples).cumsum(0).roll(1)
        before_S[0] = 0
        place_K = query_K.long().cumsum(0) - 1 - before_S[sample_K]
    else:
        query_K = judged_K if scope == "full" else seen_K & known_K
        donated_K = seen_K & ~query_K
    asked_S = last_S >= 0
    questions = Questions(
        donated_place_P=place_K[donated_K],
        donated_count_S=torch.bincount(sample_K[donated_K], minlength=samples)[asked_S],
        query_id_Q=ids_K[query_K],
        query_place_Q=place_K[query_K],
        query_count_S=torch.bincount(sample_K[query_K], minlength=samples)[asked_S],
        predicts_Q=judged_K[query_K],
        width=torch.bincount(sample_K).max(),
    )
    return Donation(
        questions,
        donated_row_P=row_K[donated_K],
        donated_column_P=column_K[donated_K],
        query_row_Q=row_K[query_K],
        query_column_Q=column_K[query_K],
        answered_N=judged_K[predicts_K],
    )
