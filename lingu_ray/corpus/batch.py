"""From samples to micro-batches: cut by a token budget, padded on the right.

Shape suffixes: B batch, T tokens of the longest sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lingu_ray.corpus.encode import Sample, join_vision


@dataclass
class MicroBatch:
    """What one forward pass takes. Ids and attention mask are int64, the rest bool; padding is on the right."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    supervised_BT: Tensor
    visual_BT: Tensor
    vision: dict[str, Tensor]
    distill_B: Tensor
    sources: list[str]
    positions: list[int]


PASS_TOKENS = 128
"""What one more forward and backward pass costs beside its tokens, in tokens: what padding is weighed against."""


def cut(samples: list[Sample], token_budget: int) -> list[list[Sample]]:
    """Samples in groups of at most `token_budget` padded tokens each, longest first (ties: by position).

    Of all cuts of the ordered samples it takes the cheapest: fewest padded tokens, each group counting `PASS_TOKENS`
    more. So short samples are not padded to the length of long ones.

    Raises:
        ValueError: a sample alone is longer than the budget.
    """
    ordered = sorted(samples, key=lambda sample: (-len(sample), sample.position))
    if ordered and len(ordered[0]) > token_budget:
        longest = ordered[0]
        raise ValueError(
            f"row {longest.position} (source {longest.source}) has {len(longest)} tokens, more than the budget of "
            f"{token_budget} tokens of a micro-batch"
        )
    lengths = [len(sample) for sample in ordered]
    cost, begin_of = [0.0], [0]  # of the cheapest cut of the first `end` samples, and where its last group begins
    for end in range(1, len(ordered) + 1):
        fitting = [b for b in range(end) if lengths[b] * (end - b) <= token_budget]
        begin = min(fitting, key=lambda b: cost[b] + lengths[b] * (end - b) + PASS_TOKENS)
        cost.append(cost[begin] + lengths[begin] * (end - begin) + PASS_TOKENS)
        begin_of.append(begin)
    groups, end = [], len(ordered)
    while end:
        groups.append(ordered[begin_of[end] : end])
        end = begin_of[end]
    return groups[::-1]


def collate(samples: list[Sample], pad_id: int) -> MicroBatch:
    """One micro-batch of the samples, in their order; its tensors are as long as the longest sample."""

    def pad(tensors: list[Tensor], value: float) -> Tensor:
        return pad_sequence(tensors, batch_first=True, padding_value=value)

    ids_BT = pad([s.input_ids_T for s in samples], pad_id)
    attention_BT = pad([torch.ones_like(s.input_ids_T) for s in samples], 0)
    return MicroBatch(
        input_ids_BT=ids_BT,
        attention_mask_BT=attention_BT,
        supervised_BT=pad([s.supervised_T for s in samples], 0),
        visual_BT=pad([s.visual_T for s in samples], 0),
        vision=join_vision([s.vision for s in samples if s.vision]),
        distill_B=torch.tensor([s.distill for s in samples]),
        sources=[s.source for s in samples],
        positions=[s.position for s in samples],
    )
