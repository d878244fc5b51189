"""Which positions are donated, which the teacher computes, and which of those carry a KD term.

A position is *donated* (its K and V come from the student) or a *query* (the teacher computes it). A query q may attend
to position k of the same row where k ≤ q; keys are the student's on donated positions, the teacher's own on queries.
The first answer token is predicted from the last prompt position, so that position is a query (paper, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Scope = Literal["full", "visual"]
Context = Literal["shared_kv", "prompt_text"]


@dataclass(frozen=True)
class Donation:
    """The plan for one micro-batch `[B, T]`; donated positions and queries are listed row after row, in order.

    `donated_row_P`, `donated_column_P`: where the donated positions stand in `[B, T]`.
    `donated_position_P`, `query_position_Q`: their positions in the sequence that the teacher sees (also for RoPE).
    `donated_count_S`, `query_count_S`: how many each of the S distilled rows has.
    `query_id_Q`: token ids of the queries. `predicts_Q`: the M queries whose next token is supervised.
    `width`: T, as a tensor; the teacher lays its keys out as wide, so that its sums run as the student's do.
    `answered_N`: of the micro-batch's N supervised tokens, in row-major order, those that get a KD term.
    """

    donated_row_P: Tensor
    donated_column_P: Tensor
    donated_position_P: Tensor
    donated_count_S: Tensor
    query_id_Q: Tensor
    query_position_Q: Tensor
    query_count_S: Tensor
    predicts_Q: Tensor
    width: Tensor
    answered_N: Tensor

    @property
    def tokens(self) -> int:
        """M, the number of tokens with a KD term."""
        return int(self.predicts_Q.sum())


def predicting(supervised_BT: Tensor) -> Tensor:
    """`[B, T]` bool: positions whose *next* token is supervised (the shift by one)."""
    predicts_BT = torch.zeros_like(supervised_BT)
    predicts_BT[:, :-1] = supervised_BT[:, 1:]
    return predicts_BT


def plan_donation(
    input_ids_BT: Tensor,
    attention_mask_BT: Tensor,
    supervised_BT: Tensor,
    visual_BT: Tensor,
    distill_B: Tensor,
    teacher_vocabulary: int,
    context: Context = "shared_kv",
    scope: Scope = "full",
) -> Donation | None:
    """Plan the donation of one right-padded micro-batch; None when none of its tokens gets a KD term.

    `context="prompt_text"` is the ablation without sharing: nothing is donated, the teacher reads the text alone and
    positions are renumbered without the visual ones. Tokens that the teacher's vocabulary lacks are never queries.
    """
    predicts_BT = predicting(supervised_BT)
    known_BT = (input_ids_BT < teacher_vocabulary) & ~visual_BT
    judged_BT = predicts_BT & known_BT & distill_B[:, None]
    rows = judged_BT.any(1)
    if not rows.any():
        return None
    columns_T = torch.arange(input_ids_BT.shape[1])
    last_B = torch.where(judged_BT, columns_T, -1).amax(1)
    seen_BT = attention_mask_BT.bool() & (columns_T <= last_B[:, None])
    if context == "prompt_text":
        query_BT = seen_BT & known_BT
        donated_BT = torch.zeros_like(query_BT)
        position_BT = query_BT.long().cumsum(1) - 1
    else:
        query_BT = judged_BT if scope == "full" else seen_BT & known_BT
        donated_BT = seen_BT & ~query_BT
        position_BT = columns_T.expand_as(input_ids_BT)
    donated_row, donated_column = donated_BT.nonzero(as_tuple=True)
    return Donation(
        donated_row_P=donated_row,
        donated_column_P=donated_column,
        donated_position_P=position_BT[donated_BT],
        donated_count_S=donated_BT.sum(1)[rows],
        query_id_Q=input_ids_BT[query_BT],
        query_position_Q=position_BT[query_BT],
        query_count_S=query_BT.sum(1)[rows],
        predicts_Q=judged_BT[query_BT],
        width=torch.tensor(input_ids_BT.shape[1]),
        answered_N=judged_BT[predicts_BT],
    )
