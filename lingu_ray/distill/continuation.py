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

    `kv_L2PHE`: donated keys and values (P may be 0). `query_position_Q`: RoPE positions of the queries.
    """

    kv_L2PHE: Tensor
    query_position_Q: Tensor


def make_request(donation: Donation, capture: KVCapture | None) -> TeacherRequest:
    """The request for a planned donation and what was captured for it (None: nothing is shared)."""
    query = donation.query
    nothing = torch.empty(0, 2, 0, 0, 0)
    if capture is None:
        return TeacherRequest(**vars(query), kv_L2PHE=nothing, query_position_Q=query.query_index_Q)
    return TeacherRequest(
        **vars(query),
        kv_L2PHE=nothing if capture.kv_L2PHE is None else capture.kv_L2PHE,
        query_position_Q=capture.positions_at(donation.query_row_Q, donation.query_column_Q),
    )


class _SharedKV(Cache):
    """The donated KV with gaps that the teacher's own keys and values fill, each at its position.

    A key has the index that it had in the student's sample, so sums run in the same order and results agree up to
    rounding. All layers use one pair of buffers: each writes to the same slots, and those in between stay zero.
    """

    def __init__(self, kv_L2PHE: Tensor, donated_P: Tensor, own_Q: Tensor, slot_Q: Tensor, shape: tuple[int, int]):
        """`donated_P`, `own_Q`: slots among the S · K keys. `slot_Q`: the real queries among S · Q padded ones."""
        self.kv_L2PHE, self.donated_P, self.own_Q, self.slot_Q, self.shape = kv_L2PHE, donated_P, own_Q, slot_Q, shape
        self.buffers: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """`[S, H, Q, E]` of the queries in; `[S, H, K, E]` of all positions out, valid until the next layer's."""
        rows, keys = self.shape
        filled = []
        for part, own_SHQE in enumerate((key_states, value_states)):
            heads, width = own_SHQE.shape[1], own_SHQE.shape[3]
            if len(self.buffers) == part:
                self.buffers.append(own_SHQE.new_zeros(rows * keys, heads, width))
            buffer = self.buffers[part]
            if len(self.donated_P):
                buffer.index_copy_(0, self.donated_P, self.kv_L2PHE[layer_idx, part])
            buffer.index_copy_(0, self.own_Q, own_SHQE.transpose(1, 2).flatten(0, 1)[self.slot_Q])
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
    donated_row_P, _ = _rows_and_slots(request.donated_count_S.to(device))
    row_Q, slot_Q = _rows_and_slots(request.query_count_S.to(device))
    index_Q = request.query_index_Q.to(device)
    rows, keys = len(request.query_count_S), int(request.width)
    queries = int(slot_Q.max()) + 1

    def spread(values_Q: Tensor, padding: int) -> Tensor:
        spread_SQ = values_Q.new_full((rows, queries), padding, device=device)
        spread_SQ[row_Q, slot_Q] = values_Q.to(device)
        return spread_SQ

    # a padding query has the last index and sees the key there, so its softmax is never empty; its result is dropped
    index_SQ = spread(index_Q, padding=keys - 1)
    output = decoder(
        input_ids=spread(request.query_id_Q, padding=0),
        position_ids=spread(request.query_position_Q, padding=0),
        attention_mask=_masks(decoder, index_SQ, keys),
        past_key_values=_SharedKV(
            request.kv_L2PHE.to(device=device, dtype=decoder.dtype),
            donated_P=donated_row_P * keys + request.donated_index_P.to(device),
            own_Q=row_Q * keys + index_Q,
            slot_Q=row_Q * queries + slot_Q,
            shape=(rows, keys),
        ),
        use_cache=True,
    )
    predicts_Q = request.predicts_Q.to(device)
    return output.last_hidden_state[row_Q[predicts_Q], slot_Q[predicts_Q]]


def _masks(decoder: PreTrainedModel, index_SQ: Tensor, keys: int) -> Tensor | dict[str, Tensor]:
    """Which keys a query sees, `[S, 1, Q, K]`: by kind of layer where the decoder has several kinds.

    Donated positions and queries together leave no gap, so the order of the indices is the whole mask.
    """
    key_K, index_S1Q1 = torch.arange(keys, device=index_SQ.device), index_SQ[:, None, :, None]
    causal_S1QK = key_K <= index_S1Q1
    window = sliding_window(decoder.config)
    sliding_S1QK = causal_S1QK if window is None else causal_S1QK & (key_K > index_S1Q1 - window)
    masks = {"full_attention": causal_S1QK, "sliding_attention": sliding_S1QK}
    if decoder.config._attn_implementation == "eager":  # which adds its mask to the scores
        lowest = torch.finfo(decoder.dtype).min
        masks = {kind: torch.zeros_like(m, dtype=decoder.dtype).masked_fill(~m, lowest) for kind, m in masks.items()}
    return masks if has_layer_types(decoder.config) else masks["sliding_attention"]


def _rows_and_slots(count_S: Tensor) -> tuple[Tensor, Tensor]:
    """For items concatenated row after row: the row of each, and its slot within the row."""
    row = torch.repeat_interleave(count_S)
    start_S = count_S.cumsum(0) - count_S
    return row, torch.arange(len(row), device=count_S.device) - start_S[row]
