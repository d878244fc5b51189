"""Which positions are donated, which the teacher computes, and which of those carry a KD term.

A position is *donated* (its K and V come from the student) or a *query* (the teacher computes it). A query q may attend
to position k of the same sample where k ≤ q; keys are the student's on donated positions, the teacher's own on queries.
The first answer token is predicted from the last prompt position, so that position is a query (paper, section 3).

A micro-batch `[B, T]` holds a sample a row, padded on the right, or several samples a row, packed one after another.
`sample_BT` says which is which; all here is computed over its K tokens, sample after sample, so both are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Scope = Literal["full", "visual"]
Context = Literal["shared_kv", "prompt_text"]


@dataclass(frozen=True)
class TeacherQuery:
    """What a teacher is asked about S distilled samples; items are concatenated, sample after sample, in order.

    An *index* is a position in its sample, counted from 0.

    `donated_index_P`: index of each donated position. `donated_count_S`: how many of them a sample has.
    `query_id_Q`, `query_index_Q`, `query_count_S`: token ids, indices and counts of the queries.
    `predicts_Q`: the M queries whose next token is supervised.
    `width`: longest sample of the micro-batch, as a tensor; the teacher's keys are padded to it, so that its sums run
    in the student's order.
    """

    donated_index_P: Tensor
    donated_count_S: Tensor
    query_id_Q: Tensor
    query_index_Q: Tensor
    query_count_S: Tensor
    predicts_Q: Tensor
    width: Tensor


@dataclass(frozen=True)
class Donation:
    """The plan for one micro-batch: the query, and where its positions are in `[B, T]`.

    `kd_mask_N`: of the micro-batch's N supervised tokens, in row-major order, those that get a KD term.
    """

    query: TeacherQuery
    donated_row_P: Tensor
    donated_column_P: Tensor
    query_row_Q: Tensor
    query_column_Q: Tensor
    kd_mask_N: Tensor

    @property
    def tokens(self) -> int:
        """M, the number of tokens with a KD term."""
        return int(self.query.predicts_Q.sum())


def predicting(supervised_BT: Tensor, sample_BT: Tensor) -> Tensor:
    """`[B, T]` bool: positions whose *next* token is supervised (the shift by one), within their sample."""
    predicts_BT = torch.zeros_like(supervised_BT)
    predicts_BT[:, :-1] = supervised_BT[:, 1:] & (sample_BT[:, 1:] == sample_BT[:, :-1])
    return predicts_BT


def indices_in_sample(sample_BT: Tensor) -> Tensor:
    """`[B, T]` int64: each position's index in its sample, from 0; 0 on padding."""
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
    indices are renumbered without the visual ones. Tokens that the teacher's vocabulary lacks are never queries.
    """
    row_K, column_K = (sample_BT >= 0).nonzero(as_tuple=True)
    sample_K, index_K = sample_BT[row_K, column_K], indices_in_sample(sample_BT)[row_K, column_K]
    ids_K, visual_K = input_ids_BT[row_K, column_K], visual_BT[row_K, column_K]
    predicts_K = predicting(supervised_BT, sample_BT)[row_K, column_K]
    known_K = (ids_K < teacher_vocabulary) & ~visual_K
    kd_K = predicts_K & known_K & distill_S[sample_K]
    if not kd_K.any():
        return None
    samples = len(distill_S)
    last_S = index_K.new_full((samples,), -1).scatter_reduce(0, sample_K[kd_K], index_K[kd_K], "amax")
    seen_K = index_K <= last_S[sample_K]
    if context == "prompt_text":
        query_K, donated_K = seen_K & known_K, torch.zeros_like(seen_K)
        before_S = torch.bincount(sample_K[query_K], minlength=samples).cumsum(0).roll(1)
        before_S[0] = 0
        index_K = query_K.long().cumsum(0) - 1 - before_S[sample_K]
    else:
        query_K = kd_K if scope == "full" else seen_K & known_K
        donated_K = seen_K & ~query_K
    has_kd_S = last_S >= 0
    query = TeacherQuery(
        donated_index_P=index_K[donated_K],
        donated_count_S=torch.bincount(sample_K[donated_K], minlength=samples)[has_kd_S],
        query_id_Q=ids_K[query_K],
        query_index_Q=index_K[query_K],
        query_count_S=torch.bincount(sample_K[query_K], minlength=samples)[has_kd_S],
        predicts_Q=kd_K[query_K],
        width=torch.bincount(sample_K).max(),
    )
    return Donation(
        query,
        donated_row_P=row_K[donated_K],
        donated_column_P=column_K[donated_K],
        query_row_Q=row_K[query_K],
        query_column_Q=column_K[query_K],
        kd_mask_N=kd_K[predicts_K],
    )
