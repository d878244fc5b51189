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
from lingu_ray.distill.donation import Donation, Questions

_MIN_QUERIES = 4
"""Matrix products of fewer rows run other CPU kernels, which round differently; padding keeps results bit-equal."""


@dataclass(frozen=True)
class TeacherRequest(Questions):
    """All that the teacher needs to judge a micro-batch.

    `kv_L2PHE`: donated keys and values (P may be 0). `query_position_Q`: RoPE positions of the queries.
    """

    kv_L2PHE: Tensor
    query_position_Q: Tensor


def make_request(donation: Donation, capture: KVCapture | None) -> TeacherRequest:
    """The request for a planned donation and what was captured for it (None: nothing is shared)."""
    questions = donation.questions
    nothing = torch.empty(0, 2, 0, 0, 0)
    if capture is None:
        return TeacherRequest(**vars(questions), kv_L2PHE=nothing, query_position_Q=questions.query_place_Q)
    return TeacherRequest(
        **vars(questions),
        kv_L2PHE=nothing if capture.kv_L2PHE is None else capture.kv_L2PHE,
        query_position_Q=capture.positions_at(donation.query_row_Q, donation.query_column_Q),
    )


class _SharedKV(Cache):
    """The donated KV with gaps that the teacher's own keys and values fill, each at its position.

    A key stands where it stood in the student's sample, so sums run in the same order and results agree to the bit.
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
        row_Q, place_Q, slot_Q = self.query

        def fill(donated_PHE: Tensor, own_SHQE: Tensor) -> Tensor:
            buffer_SKHE = own_SHQE.new_zeros(*self.shape, own_SHQE.shape[1], own_SHQE.shape[3])
            if len(donated_PHE):
                buffer_SKHE[self.donated] = donated_PHE
            buffer_SKHE[row_Q, place_Q] = own_SHQE.transpose(1, 2)[row_Q, slot_Q]
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
    place_Q = request.query_place_Q.to(device)
    rows, keys = len(request.query_count_S), int(request.width)
    queries = max(int(slot_Q.max()) + 1, -(-_MIN_QUERIES // rows))

    def spread(values_Q: Tensor, padding: int) -> Tensor:
        spread_SQ = values_Q.new_full((rows, queries), padding, device=device)
        spread_SQ[row_Q, slot_Q] = values_Q.to(device)
        return spread_SQ

    # a padding query stands last and sees what stands there, so its softmax is never empty; its result is dropped
    place_SQ = spread(place_Q, padding=keys - 1)
    output = decoder(
        input_ids=spread(request.query_id_Q, padding=0),
        position_ids=spread(request.query_position_Q, padding=0),
        attention_mask=_masks(decoder, place_SQ, keys),
        past_key_values=_SharedKV(
            request.kv_L2PHE.to(device=device, dtype=decoder.dtype),
            donated=(donated_row_P, request.donated_place_P.to(device)),
            query=(row_Q, place_Q, slot_Q),
            shape=(rows, keys),
        ),
        use_cache=True,
    )
    predicts_Q = request.predicts_Q.to(device)
    return output.last_hidden_state[row_Q[predicts_Q], slot_Q[predicts_Q]]


def _masks(decoder: PreTrainedModel, place_SQ: Tensor, keys: int) -> Tensor | dict[str, Tensor]:
    """Which keys a query sees, `[S, 1, Q, K]`: by kind of layer where the decoder has several kinds.

    Donated positions and queries together leave no gap, so the order of the places is the whole mask.
    """
    key_K, place_S1Q1 = torch.arange(keys, device=place_SQ.device), place_SQ[:, None, :, None]
    causal_S1QK = key_K <= place_S1Q1
    window = sliding_window(decoder.config)
    sliding_S1QK = causal_S1QK if window is None else causal_S1QK & (key_K > place_S1Q1 - window)
    masks = {"full_attention": causal_S1QK, "sliding_attention": sliding_S1QK}
    if decoder.config._attn_implementation == "eager":  # which adds its mask to the scores
        lowest = torch.finfo(decoder.dtype).min
        masks = {kind: torch.zeros_like(m, dtype=decoder.dtype).masked_fill(~m, lowest) for kind, m in masks.items()}
    return masks if has_layer_types(decoder.config) else masks["sliding_attention"]


def _rows_and_slots(count_S: Tensor) -> tuple[Tensor, Tensor]:
    """For items concatenated row after row: the row of each, and its place within the row."""
    row = torch.repeat_interleave(count_S)
    start_S = count_S.cumsum(0) - count_S
    return row, torch.arange(len(row), device=count_S.device) - start_S[row]
