"""The teacher continues from the student's prompt KV and returns its hidden states on the answer queries.

Its cost is proportional to the queries (the answer), not to the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from lingu_ray.distill.capture import KVCapture
from lingu_ray.distill.decoder import has_layer_types, sliding_window
from lingu_ray.distill.donation import Donation, TeacherQuery


@dataclass(frozen=True)
class TeacherRequest(TeacherQuery):
    """All that the teacher needs for a micro-batch: the query, and what the student donates.

    `kv_L2CHE`: captured keys and values (C may be 0). `query_position_Q`: RoPE positions of the queries.
    """

    kv_L2CHE: Tensor
    query_position_Q: Tensor


def make_request(donation: Donation, capture: KVCapture | None) -> TeacherRequest:
    """The request for a planned donation and what was captured for it (None: nothing is shared)."""
    query = donation.query
    nothing = torch.empty(0, 2, 0, 0, 0)
    if capture is None:
        return TeacherRequest(**vars(query), kv_L2CHE=nothing, query_position_Q=query.query_index_Q)
    return TeacherRequest(
        **vars(query),
        kv_L2CHE=nothing if capture.kv_L2CHE is None else capture.kv_L2CHE,
        query_position_Q=capture.positions_at(donation.query_row_Q, donation.query_column_Q),
    )


class _SharedKV(Cache):
    """The donated KV with gaps that the teacher's own keys and values fill, each at its position.

    A key has the index that it had in the student's sample, so sums run in the same order and results agree up to
    rounding. All layers use one pair of buffers: each writes to the same slots, and those in between stay zero.
    """

    def __init__(
        self,
        kv_L2CHE: Tensor,
        kv_P: Tensor,
        donated_P: Tensor,
        own_Q: Tensor,
        slot_Q: Tensor,
        shape: tuple[int, int],
    ):
        """`kv_P`: index of each donated position's KV. `donated_P`, `own_Q`: slots among the R · K keys.

        `slot_Q`: the real queries among R · Q padded ones.
        """
        self.kv_L2CHE, self.donated_P, self.own_Q, self.slot_Q, self.shape = kv_L2CHE, donated_P, own_Q, slot_Q, shape
        self.kv_P = None if len(kv_P) == kv_L2CHE.shape[2] else kv_P  # each once, so in order
        self.buffers: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """`[R, H, Q, E]` of the queries in; `[R, H, K, E]` of all positions out, valid until the next layer's."""
        rows, keys = self.shape
        filled = []
        for part, own_RHQE in enumerate((key_states, value_states)):
            heads, width = own_RHQE.shape[1], own_RHQE.shape[3]
            if len(self.buffers) == part:
                self.buffers.append(own_RHQE.new_zeros(rows * keys, heads, width))
            buffer = self.buffers[part]
            if len(self.donated_P):
                kv_CHE = self.kv_L2CHE[layer_idx, part]
                buffer.index_copy_(0, self.donated_P, kv_CHE if self.kv_P is None else kv_CHE[self.kv_P])
            buffer.index_copy_(0, self.own_Q, own_RHQE.transpose(1, 2).flatten(0, 1)[self.slot_Q])
            filled.append(buffer.view(rows, keys, heads, width).transpose(1, 2))
        return filled[0], filled[1]

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
    donated_row_P, _ = _rows_and_slots(request.donated_count_R.to(device))
    row_Q, slot_Q = _rows_and_slots(request.query_count_R.to(device))
    index_Q = request.query_index_Q.to(device)
    rows, keys = len(request.query_count_R), int(request.width)
    queries = int(slot_Q.max()) + 1

    def spread(values_Q: Tensor, padding: int) -> Tensor:
        spread_RQ = values_Q.new_full((rows, queries), padding, device=device)
        spread_RQ[row_Q, slot_Q] = values_Q.to(device)
        return spread_RQ

    # a padding query has the last index and sees the key there, so its softmax is never empty; its result is dropped
    index_RQ = spread(index_Q, padding=keys - 1)
    output = decoder(
        input_ids=spread(request.query_id_Q, padding=0),
        position_ids=spread(request.query_position_Q, padding=0),
        attention_mask=_masks(decoder, index_RQ, keys),
        past_key_values=_SharedKV(
            request.kv_L2CHE.to(device=device, dtype=decoder.dtype),
            kv_P=request.donated_kv_P.to(device),
            donated_P=donated_row_P * keys + request.donated_index_P.to(device),
            own_Q=row_Q * keys + index_Q,
            slot_Q=row_Q * queries + slot_Q,
            shape=(rows, keys),
        ),
        use_cache=True,
    )
    predicts_Q = request.predicts_Q.to(device)
    return output.last_hidden_state[row_Q[predicts_Q], slot_Q[predicts_Q]]


def _masks(decoder: PreTrainedModel, index_RQ: Tensor, keys: int) -> Tensor | dict[str, Tensor]:
    """Which keys a query sees, `[R, 1, Q, K]`: by kind of layer where the decoder has several kinds.

    Donated positions and queries together leave no gap, so the order of the indices is the whole mask.
    """
    key_K, index_R1Q1 = torch.arange(keys, device=index_RQ.device), index_RQ[:, None, :, None]
    causal_R1QK = key_K <= index_R1Q1
    window = sliding_window(decoder.config)
    sliding_R1QK = causal_R1QK if window is None else causal_R1QK & (key_K > index_R1Q1 - window)
    masks = {"full_attention": causal_R1QK, "sliding_attention": sliding_R1QK}
    if decoder.config._attn_implementation == "eager":  # which adds its mask to the scores
        lowest = torch.finfo(decoder.dtype).min
        masks = {kind: torch.zeros_like(m, dtype=decoder.dtype).masked_fill(~m, lowest) for kind, m in masks.items()}
    return masks if has_layer_types(decoder.config) else masks["sliding_attention"]


def _rows_and_slots(count_R: Tensor) -> tuple[Tensor, Tensor]:
    """For items concatenated row after row: the row of each, and its slot within the row."""
    row = torch.repeat_interleave(count_R)
    start_R = count_R.cumsum(0) - count_R
    return row, torch.arange(len(row), device=count_R.device) - start_R[row]
