"""The teacher continues from the student's prompt KV and returns its hidden states on the answer queries.

Its cost is proportional to the queries (the answer), not to the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from lingu_ray.distill.donation import Donation

_MIN_QUERIES = 4
"""Matrix products of fewer rows run other CPU kernels, which round differently; padding keeps results bit-equal."""


@dataclass(frozen=True)
class TeacherRequest:
    """All that the teacher needs to judge a micro-batch; rows are concatenated, without padding.

    `kv_L2PHE`: donated keys and values (P may be 0). The rest as in `Donation`.
    """

    kv_L2PHE: Tensor
    donated_position_P: Tensor
    donated_count_S: Tensor
    query_id_Q: Tensor
    query_position_Q: Tensor
    query_count_S: Tensor
    predicts_Q: Tensor
    width: Tensor


def make_request(donation: Donation, kv_L2PHE: Tensor) -> TeacherRequest:
    """The request for a planned donation and the KV captured for it."""
    return TeacherRequest(
        kv_L2PHE=kv_L2PHE,
        donated_position_P=donation.donated_position_P,
        donated_count_S=donation.donated_count_S,
        query_id_Q=donation.query_id_Q,
        query_position_Q=donation.query_position_Q,
        query_count_S=donation.query_count_S,
        predicts_Q=donation.predicts_Q,
        width=donation.width,
    )


class _SharedKV(Cache):
    """The donated KV with gaps that the teacher's own keys and values fill, each at its position.

    A key stands where it stood in the student's sequence, so sums run in the same order and results agree to the bit.
    """

    def __init__(
        self,
        kv_L2PHE: Tensor,
        donated: tuple[Tensor, Tensor],
        query: tuple[Tensor, Tensor, Tensor],
        shape: tuple[int, int],
    ):
        self.kv_L2PHE, self.donated, self.query, self.shape = kv_L2PHE, donated, query, shape

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """`[S, H, Q, E]` of the queries in; `[S, H, K, E]` of all positions out."""
        row_Q, position_Q, slot_Q = self.query

        def fill(donated_PHE: Tensor, own_SHQE: Tensor) -> Tensor:
            buffer_SKHE = own_SHQE.new_zeros(*self.shape, own_SHQE.shape[1], own_SHQE.shape[3])
            if len(donated_PHE):
                buffer_SKHE[self.donated] = donated_PHE
            buffer_SKHE[row_Q, position_Q] = own_SHQE.transpose(1, 2)[row_Q, slot_Q]
            return buffer_SKHE.transpose(1, 2)

        if not self.kv_L2PHE.numel():  # nothing is donated
            nothing = key_states.new_empty(0)
            return fill(nothing, key_states), fill(nothing, value_states)
        donated_key_PHE, donated_value_PHE = self.kv_L2PHE[layer_idx]
        return fill(donated_key_PHE, key_states), fill(donated_value_PHE, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are given explicitly; nothing counts as past."""
        return 0


@torch.no_grad()
def continue_from_kv(decoder: PreTrainedModel, request: TeacherRequest) -> Tensor:
    """Run the frozen decoder over the queries on top of the donated KV.

    Returns `hidden_MD`, final hidden states (after the last norm) of the queries that predict a supervised token, in
    the request's order, in the decoder's dtype. No gradient. The decoder's weights and the request are not changed.
    """
    device = decoder.device
    donated_row_P, _ = _rows_and_slots(request.donated_count_S.to(device))
    row_Q, slot_Q = _rows_and_slots(request.query_count_S.to(device))
    position_Q = request.query_position_Q.to(device)
    rows, keys = len(request.query_count_S), int(request.width)
    queries = max(int(slot_Q.max()) + 1, -(-_MIN_QUERIES // rows))
    # a padding query stands last and sees every position, so that its softmax is never empty; its result is dropped
    position_SQ = position_Q.new_full((rows, queries), keys - 1)
    position_SQ[row_Q, slot_Q] = position_Q
    id_SQ = torch.zeros_like(position_SQ)
    id_SQ[row_Q, slot_Q] = request.query_id_Q.to(device)
    # donated positions and queries together leave no gap, so causality by position is the whole mask
    mask_S1QK = (torch.arange(keys, device=device) <= position_SQ.unsqueeze(-1)).unsqueeze(1)
    output = decoder(
        input_ids=id_SQ,
        position_ids=position_SQ,
        attention_mask=mask_S1QK,
        past_key_values=_SharedKV(
            request.kv_L2PHE.to(device=device, dtype=decoder.dtype),
            donated=(donated_row_P, request.donated_position_P.to(device)),
            query=(row_Q, position_Q, slot_Q),
            shape=(rows, keys),
        ),
        use_cache=True,
    )
    predicts_Q = request.predicts_Q.to(device)
    return output.last_hidden_state[row_Q[predicts_Q], slot_Q[predicts_Q]]


def _rows_and_slots(count_S: Tensor) -> tuple[Tensor, Tensor]:
    """For items concatenated row after row: the row of each, and its place within the row."""
    row = torch.repeat_interleave(count_S)
    start_S = count_S.cumsum(0) - count_S
    return row, torch.arange(len(row), device=count_S.device) - start_S[row]
