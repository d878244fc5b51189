"""Which positions are donated, which the teacher computes, and which of those carry a KD term.

A position is *donated* (its K and V come from the student) or a *query* (the teacher computes it). A query q may attend
to position k of the same sample where k ≤ q; keys are the student's on donated positions, the teacher's own on queries.
The first answer token is predicted from the last prompt position, so that position is a query (paper, section 3).

A micro-batch `[B, T]` holds a sample a row, padded on the right, or several samples a row, packed one after another.
`sample_BT` says which is which; all here is computed over its K tokens, sample after sample, so both are the same.

The teacher is asked in R *parts*. A part is a sample, or one answer of it: a conversation's earlier answers are prompt
to a later one, and prompts are the student's. So where an answer is judged, the positions of earlier ones are donated;
where they are judged themselves, they are queries of a part of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Scope = Literal["full", "visual"]
Context = Literal["shared_kv", "prompt_text"]
EarlierTurns = Literal["student", "teacher"]


@dataclass(frozen=True)
class TeacherQuery:
    """What a teacher is asked in R parts; items are concatenated, part after part, in order.

    An *index* is a position in its sample, counted from 0.

    `donated_index_P`: index of each donated position. `donated_count_R`: how many of them a part has. `donated_kv_P`:
    which of the C captured keys and values each has; parts of one sample share them.
    `query_id_Q`, `query_index_Q`, `query_count_R`: token ids, indices and counts of the queries.
    `predicts_Q`: the M queries whose next token is supervised.
    `width`: longest sample of the micro-batch, as a tensor; the teacher's keys are padded to it, so that its sums run
    in the student's order.
    """

    donated_index_P: Tensor
    donated_count_R: Tensor
    donated_kv_P: Tensor
    query_id_Q: Tensor
    query_index_Q: Tensor
    query_count_R: Tensor
    predicts_Q: Tensor
    width: Tensor


@dataclass(frozen=True)
class Donation:
    """The plan for one micro-batch: the query, and where in `[B, T]` its positions are, and the C that are captured.

    `kd_mask_N`: of the micro-batch's N supervised tokens, in row-major order, those that get a KD term.
    """

    query: TeacherQuery
    donated_row_C: Tensor
    donated_column_C: Tensor
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
    start_BT = torch.where(sample_starts(sample_BT), columns_BT, 0).cummax(1).values
    return (columns_BT - start_BT).masked_fill(sample_BT < 0, 0)


def sample_starts(sample_BT: Tensor) -> Tensor:
    """`[B, T]` bool: whether a sample begins here, or the padding of a row."""
    starts_BT = torch.ones_like(sample_BT, dtype=torch.bool)
    starts_BT[:, 1:] = sample_BT[:, 1:] != sample_BT[:, :-1]
    return starts_BT


def plan_donation(
    input_ids_BT: Tensor,
    sample_BT: Tensor,
    supervised_BT: Tensor,
    visual_BT: Tensor,
    distill_S: Tensor,
    teacher_vocabulary: int,
    context: Context = "shared_kv",
    scope: Scope = "full",
    earlier_turns: EarlierTurns = "student",
) -> Donation | None:
    """Plan the donation of one micro-batch; None when none of its tokens gets a KD term.

    `sample_BT`: number of the sample that a position belongs to, -1 on padding; ascending in row-major order.
    `distill_S`: which samples are distilled.
    `context="prompt_text"` is the ablation without sharing: nothing is donated, the teacher reads the text alone and
    indices are renumbered without the visual ones. Tokens that the teacher's vocabulary lacks are never queries.
    `earlier_turns`: whose keys and values stand for a conversation's earlier answers, where the teacher judges a later
    one; only `full` scope has the choice.
    """
    row_K, column_K = (sample_BT >= 0).nonzero(as_tuple=True)
    sample_K, index_K = sample_BT[row_K, column_K], indices_in_sample(sample_BT)[row_K, column_K]
    ids_K, visual_K = input_ids_BT[row_K, column_K], visual_BT[row_K, column_K]
    predicts_K = predicting(supervised_BT, sample_BT)[row_K, column_K]
    known_K = (ids_K < teacher_vocabulary) & ~visual_K
    kd_K = predicts_K & known_K & distill_S[sample_K]
    if not kd_K.any():
        return None
    reads_text = context == "prompt_text" or scope == "visual"
    part_K = sample_K if reads_text or earlier_turns == "teacher" else _turns(predicts_K)
    number_R, part_I, place_I = _parts(kd_K, part_K, index_K)
    kd_I = kd_K[place_I] & (part_K[place_I] == number_R[part_I])
    query_I = known_K[place_I] if reads_text else kd_I
    donated_I = torch.zeros_like(query_I) if context == "prompt_text" else ~query_I
    donated_P, query_Q = place_I[donated_I], place_I[query_I]
    captured_K = torch.zeros_like(kd_K).index_fill_(0, donated_P, True)
    query_count_R = part_I[query_I].bincount(minlength=len(number_R))
    query = TeacherQuery(
        donated_index_P=index_K[donated_P],
        donated_count_R=part_I[donated_I].bincount(minlength=len(number_R)),
        donated_kv_P=(captured_K.long().cumsum(0) - 1)[donated_P],
        query_id_Q=ids_K[query_Q],
        query_index_Q=rows_and_slots(query_count_R)[1] if context == "prompt_text" else index_K[query_Q],
        query_count_R=query_count_R,
        predicts_Q=kd_I[query_I],
        width=torch.bincount(sample_K).max(),
    )
    return Donation(
        query,
        donated_row_C=row_K[captured_K],
        donated_column_C=column_K[captured_K],
        query_row_Q=row_K[query_Q],
        query_column_Q=column_K[query_Q],
        kd_mask_N=kd_K[predicts_K],
    )


def _turns(predicts_K: Tensor) -> Tensor:
    """`[K]` int64: number of the answer that a predicting position belongs to, counted over all samples.

    Answers of two samples never adjoin: the last position of a sample predicts nothing.
    """
    starts_K = predicts_K.clone()
    starts_K[1:] &= ~predicts_K[:-1]
    return starts_K.long().cumsum(0) - 1


def _parts(kd_K: Tensor, part_K: Tensor, index_K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The parts with a KD term: their numbers `[R]`; of the I positions that their last queries see, part after part,
    the part and the place among the K tokens.
    """
    number_R, count_R = torch.unique_consecutive(part_K[kd_K], return_counts=True)
    last_R = kd_K.nonzero().flatten()[count_R.cumsum(0) - 1]
    first_R = last_R - index_K[last_R]  # of its sample
    part_I, slot_I = rows_and_slots(last_R - first_R + 1)
    return number_R, part_I, first_R[part_I] + slot_I


def rows_and_slots(count_R: Tensor) -> tuple[Tensor, Tensor]:
    """For items concatenated row after row: the row of each, and its slot within the row."""
    row = torch.repeat_interleave(count_R)
    start_R = count_R.cumsum(0) - count_R
    return row, torch.arange(len(row), device=row.device) - start_R[row]
