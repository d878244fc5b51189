"""The teacher continues from the student's prompt KV and returns its hidden states on the answer queries.

Its cost is proportional to the queries (the answer), not to the prompt.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedConfig, PreTrainedModel

from lingu_ray.distill.capture import KVCapture
from lingu_ray.distill.decoder import has_layer_types, head_dim, key_heads, layer_types, sliding_window
from lingu_ray.distill.donation import Donation, TeacherQuery, rows_and_slots
from lingu_ray.distill.grouped_attention import copies_of_mask, for_all_heads
from lingu_ray.distill.transfer import send
from lingu_ray.passes import cheapest_cut, tokens_of_a_pass

CALL_ELEMENTS = 2**27
"""Elements of masks, keys and values in a call of the decoder, scores for masks where attention is eager: 256 MiB in
bfloat16.
"""


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
    if capture is None:
        nothing = torch.empty(0, 2, 0, 0, 0, dtype=torch.float32, device="cpu")
        return TeacherRequest(**vars(query), kv_L2CHE=nothing, query_position_Q=query.query_index_Q)
    assert capture.kv_L2CHE is not None  # see `KVCapture.check_complete`
    return TeacherRequest(
        **vars(query),
        kv_L2CHE=capture.kv_L2CHE,
        query_position_Q=capture.positions_at(donation.query_row_Q, donation.query_column_Q),
    )


def merge_requests(requests: Sequence[TeacherRequest]) -> TeacherRequest:
    """One request for the parts of several micro-batches, in order; `hidden_MD` of it is theirs, one after another."""
    if len(requests) == 1:
        return requests[0]
    captured = [request.kv_L2CHE.shape[2] for request in requests]
    moved = [request.donated_kv_P + sum(captured[:i]) for i, request in enumerate(requests)]
    kv = [request.kv_L2CHE for request in requests if request.kv_L2CHE.shape[2]] or [requests[0].kv_L2CHE]
    joined = {field.name for field in fields(TeacherRequest)} - {"donated_kv_P", "kv_L2CHE", "width"}
    return TeacherRequest(
        **{name: torch.cat([getattr(request, name) for request in requests]) for name in joined},
        donated_kv_P=torch.cat(moved),
        kv_L2CHE=torch.cat(kv, dim=2),
        width=torch.stack([request.width for request in requests]).max(),
    )


class _SharedKV(Cache):
    """The donated KV with gaps that the teacher's own keys and values fill, each at its position.

    A key has the index that it had in the student's sample, so sums run in the same order and results agree up to
    rounding. All layers use one buffer: each writes to the same slots, and those in between stay zero.
    """

    def __init__(
        self,
        kv_L2CHE: Tensor,
        kv_P: Tensor | None,
        donated_P: Tensor,
        own_RQ: Tensor,
        shape: tuple[int, int],
    ):
        """`kv_P`: index of each donated position's KV; None: each of them once, in order.

        `donated_P`, `own_RQ`: slots among the R · K keys; padding queries have one more, which nothing reads.
        """
        super().__init__(layers=[])  # Transformers asks layers for their kind
        self.kv_L2CHE, self.kv_P, self.donated_P, self.shape = kv_L2CHE, kv_P, donated_P, shape
        self.own = own_RQ.flatten()
        self.buffer: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """`[R, H, Q, E]` of the queries in; `[R, H, K, E]` of all positions out, valid until the next layer's."""
        (rows, keys), (heads, width) = self.shape, key_states.shape[1::2]
        if self.buffer is None:
            self.buffer = key_states.new_zeros(2, rows * keys + 1, heads, width)
        if len(self.donated_P):
            kv_2CHE = self.kv_L2CHE[layer_idx]
            kv_2PHE = kv_2CHE if self.kv_P is None else kv_2CHE.index_select(1, self.kv_P)
            self.buffer.index_copy_(1, self.donated_P, kv_2PHE)
        for part, own_RHQE in zip(self.buffer, (key_states, value_states), strict=True):
            part.index_copy_(0, self.own, own_RHQE.transpose(1, 2).flatten(0, 1))
        key, value = self.buffer[:, :-1].unflatten(1, (rows, keys)).transpose(2, 3)
        return key, value

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are given explicitly; nothing counts as past."""
        return 0


@torch.no_grad()
def continue_from_kv(decoder: PreTrainedModel, request: TeacherRequest, most: int = CALL_ELEMENTS) -> Tensor:
    """Run the frozen decoder over the queries on top of the donated KV.

    Returns `hidden_MD`, final hidden states (after the last norm) of the queries that predict a supervised token, in
    the request's order, in the decoder's dtype. No gradient. The decoder's weights and the request are not changed.

    All of the request but its KV is on the CPU. Its parts do not see each other, so a call of the decoder takes those
    that need about as many queries as each other: padding costs less than a call, and masks, keys and values of a call
    have at most `most` elements together, unless one part's alone have more.
    """
    kv_L2CHE = request.kv_L2CHE.to(device=decoder.device, dtype=decoder.dtype)
    masks, keys = elements_of_a_key(decoder.config)
    most_RQ = most // masks // int(request.width)
    order_R = request.query_count_R.argsort(descending=True, stable=True)
    # a part's keys and values take as much as masks of some more queries, as many in every part: no cut gets dearer
    lengths_R = request.query_count_R[order_R] + -(-keys // masks)
    groups = cheapest_cut(lengths_R.tolist(), most_RQ, tokens_of_a_pass(decoder.device))
    if len(groups) == 1:
        return _continue(decoder, request, kv_L2CHE)
    part_M = torch.repeat_interleave(request.query_count_R)[request.predicts_Q]
    hidden, place = [], []
    for group in groups:
        chosen_R = torch.zeros_like(order_R, dtype=torch.bool).index_fill_(0, order_R[group], True)
        hidden.append(_continue(decoder, _some_parts(request, chosen_R), kv_L2CHE))
        place.append(chosen_R[part_M].nonzero().flatten())
    at_M = send({"at_M": torch.cat(place).argsort()}, decoder.device)["at_M"]
    return torch.cat(hidden)[at_M]


def elements_of_a_key(config: PreTrainedConfig) -> tuple[int, int]:
    """What a call of the decoder holds for each key of a part: in masks for each query, and of the key and its value.

    Masks: one for each kind of layer, and copies of it.
    """
    masks = copies_of_mask(config) * len(set(layer_types(config)))
    return masks, 2 * key_heads(config) * head_dim(config)


def _continue(decoder: PreTrainedModel, request: TeacherRequest, kv_L2CHE: Tensor) -> Tensor:
    """`hidden_MD` of a request, in one call of the decoder, with the KV on the decoder's device."""
    donated_row_P, _ = rows_and_slots(request.donated_count_R)
    row_Q, slot_Q = rows_and_slots(request.query_count_R)
    rows, queries, keys = len(request.query_count_R), int(request.query_count_R.max()), int(request.width)
    in_order = torch.equal(request.donated_kv_P, torch.arange(kv_L2CHE.shape[2], device=request.donated_kv_P.device))

    def spread(values_Q: Tensor, padding: int) -> Tensor:
        spread_RQ = values_Q.new_full((rows, queries), padding)
        spread_RQ[row_Q, slot_Q] = values_Q
        return spread_RQ

    sent = send(
        {
            "input_ids": spread(request.query_id_Q, padding=0),
            "position_ids": spread(request.query_position_Q, padding=0),
            # a padding query has the last index and sees the key there, so its softmax is never empty
            "index_RQ": for_all_heads(decoder.config, spread(request.query_index_Q, padding=keys - 1)),
            # masks' rows begin at multiples of 8 elements: of any other mask SDPA makes a copy on GPUs, in every layer
            "key_K": torch.arange(-(-keys // 8) * 8, device=row_Q.device),
            "kv_P": None if in_order else request.donated_kv_P,
            "donated_P": donated_row_P * keys + request.donated_index_P,
            "own_RQ": spread(row_Q * keys + request.query_index_Q, padding=rows * keys),
            "predicts_M": (row_Q * queries + slot_Q)[request.predicts_Q],
        },
        decoder.device,
    )
    slots = {name: sent[name] for name in ("kv_P", "donated_P", "own_RQ")}
    output = decoder(
        input_ids=sent["input_ids"],
        position_ids=sent["position_ids"],
        attention_mask=_masks(decoder, sent["index_RQ"], sent["key_K"], keys),
        use_cache=True,
        return_dict=True,
        **{_cache_argument(type(decoder)): _SharedKV(kv_L2CHE, **slots, shape=(rows, keys))},
    )
    return output.last_hidden_state.flatten(0, 1)[sent["predicts_M"]]


@functools.cache
def _cache_argument(decoder: type[PreTrainedModel]) -> str:
    """What `forward` calls the cache: Transformers 5.24 renamed it."""
    return "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"


def _some_parts(request: TeacherRequest, chosen_R: Tensor) -> TeacherRequest:
    """The request for these of its parts (bool), in the same order; they refer to the same KV."""

    def of_parts(count_R: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
        chosen = chosen_R.repeat_interleave(count_R)
        return {name: getattr(request, name)[chosen] for name in names}

    return replace(
        request,
        donated_count_R=request.donated_count_R[chosen_R],
        query_count_R=request.query_count_R[chosen_R],
        **of_parts(request.donated_count_R, ("donated_index_P", "donated_kv_P")),
        **of_parts(request.query_count_R, ("query_id_Q", "query_index_Q", "query_position_Q", "predicts_Q")),
    )


def _masks(decoder: PreTrainedModel, index_RQ: Tensor, key_K: Tensor, keys: int) -> Tensor | dict[str, Tensor]:
    """Which keys a query sees, `[R, 1, Q, K]`, 0 where it does and the dtype's lowest where not, to add to the scores.

    By kind of layer where the decoder has several kinds. Donated positions and queries together leave no gap, so the
    order of the indices is the whole mask.
    """
    index_R1Q1 = index_RQ[:, None, :, None]
    window, lowest = sliding_window(decoder.config), torch.finfo(decoder.dtype).min

    def mask_of(kind: str) -> Tensor:
        unseen_R1QK = key_K > index_R1Q1
        if kind == "sliding_attention" and window is not None:
            unseen_R1QK |= key_K <= index_R1Q1 - window
        mask_R1QK = torch.zeros_like(unseen_R1QK, dtype=decoder.dtype).masked_fill_(unseen_R1QK, lowest)
        return mask_R1QK[..., :keys]

    masks = {kind: mask_of(kind) for kind in set(layer_types(decoder.config))}
    return masks if has_layer_types(decoder.config) else masks.popitem()[1]
