"""Micro-batches: samples grouped by a token budget, then padded on the right or packed into one row.

Shape suffixes: B rows, T tokens of the longest row, S samples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lingu_ray.corpus.encode import Sample
from lingu_ray.corpus.image_tokens import PIXEL_MASK
from lingu_ray.passes import cheapest_cut
from lingu_ray.pinning import pinned


@dataclass
class MicroBatch:
    """The input of one forward pass. Ids are int64, masks bool; padding is on the right.

    `sample_BT`: which of the S samples a position belongs to, ascending in row-major order; -1 on padding. Padded
    micro-batches have one sample per row, packed ones all samples in one row. `sampled_BT`: answers that the student
    sampled itself; they have no cross-entropy, since they are no reference.
    """

    input_ids_BT: Tensor
    sample_BT: Tensor
    supervised_BT: Tensor
    visual_BT: Tensor
    vision: dict[str, Tensor]
    sources: list[str]
    positions: list[int]
    sampled_BT: Tensor

    def pinned(self) -> MicroBatch:
        """The same in pinned memory, from which a GPU copies without blocking the host."""
        tensors = {name: pinned(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors, vision={name: pinned(value) for name, value in self.vision.items()})

    @property
    def attention_mask_BT(self) -> Tensor:
        """1 where there is a token, 0 on padding (int64)."""
        return (self.sample_BT >= 0).long()

    @property
    def tokens(self) -> int:
        """Number of tokens without padding."""
        return int((self.sample_BT >= 0).sum())


def make_micro_batches(
    samples: list[Sample], token_budget: int, pad_id: int, packing: bool, pass_tokens: int
) -> list[MicroBatch]:
    """Make micro-batches of at most `token_budget` tokens each, padding included (arguments and errors as `cut`)."""
    groups = grouped(samples, token_budget, packing, pass_tokens)
    return [collate(group, pad_id, packing) for group in groups]


def grouped(samples: list[Sample], token_budget: int, packing: bool, pass_tokens: int) -> list[list[Sample]]:
    """The samples of each micro-batch (arguments and errors as `cut`)."""
    return pack(samples, token_budget) if packing else cut(samples, token_budget, pass_tokens)


def cut(samples: list[Sample], token_budget: int, pass_tokens: int) -> list[list[Sample]]:
    """Group samples for padding: at most `token_budget` padded tokens a group, longest first (ties: by position).

    The groups are those with the least cost (`passes.cheapest_cut`), so short samples do not share one with long ones.

    Raises:
        ValueError: a sample alone is longer than the budget.
    """
    ordered = _longest_first(samples, token_budget)
    return [ordered[group] for group in cheapest_cut([len(sample) for sample in ordered], token_budget, pass_tokens)]


def pack(samples: list[Sample], token_budget: int) -> list[list[Sample]]:
    """Group samples for packing: each sample, longest first, joins the first group that has room for it.

    Raises:
        ValueError: a sample alone is longer than the budget.
    """
    groups: list[list[Sample]] = []
    room: list[int] = []
    for sample in _longest_first(samples, token_budget):
        fitting = next((i for i, left in enumerate(room) if left >= len(sample)), None)
        if fitting is None:
            fitting = len(groups)
            groups.append([])
            room.append(token_budget)
        groups[fitting].append(sample)
        room[fitting] -= len(sample)
    return groups


def collate(samples: list[Sample], pad_id: int, packing: bool = False) -> MicroBatch:
    """Make one micro-batch of the samples in their order: a row for each sample, or with `packing` one row for all."""

    def join(tensors: list[Tensor], value: float) -> Tensor:
        if packing:
            return torch.cat(tensors).unsqueeze(0)
        return pad_sequence(tensors, batch_first=True, padding_value=value)

    return MicroBatch(
        input_ids_BT=join([s.input_ids_T for s in samples], pad_id),
        sample_BT=join([torch.full_like(s.input_ids_T, i) for i, s in enumerate(samples)], -1),
        supervised_BT=join([s.supervised_T for s in samples], 0),
        visual_BT=join([s.visual_T for s in samples], 0),
        vision=join_vision([s.vision for s in samples if s.vision]),
        sources=[s.source for s in samples],
        positions=[s.position for s in samples],
        sampled_BT=join([_sampled(s) for s in samples], 0),
    )


def join_vision(visions: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join the vision tensors of several prompts, images in order; text has none.

    Idefics3's tensors `[1, images, …]` (recognized by their `pixel_attention_mask`) are joined along the images: the
    model flattens them and fills the placeholders of the whole batch in order. All others are joined along the first
    dimension. Other dimensions of different size (tiles of an image, height, width) are padded with zeros at their end.
    """
    keys = visions[0].keys() if visions else ()
    nested = PIXEL_MASK in keys
    return {key: _joined([vision[key] for vision in visions], dim=1 if nested else 0) for key in keys}


def _joined(tensors: list[Tensor], dim: int) -> Tensor:
    largest = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]

    def fill_up(tensor: Tensor) -> Tensor:
        missing = [
            0 if i == dim else most - size for i, (most, size) in enumerate(zip(largest, tensor.shape, strict=True))
        ]
        return F.pad(tensor, [side for amount in reversed(missing) for side in (0, amount)])

    return torch.cat([fill_up(tensor) for tensor in tensors], dim)


def _sampled(sample: Sample) -> Tensor:
    """`[T]` bool: the tokens that the student sampled itself."""
    start = len(sample) if sample.sampled_from is None else sample.sampled_from
    return torch.arange(len(sample)) >= start


def _longest_first(samples: list[Sample], token_budget: int) -> list[Sample]:
    """The samples, longest first, ties by position; ValueError if the longest exceeds the budget."""
    ordered = sorted(samples, key=lambda sample: (-len(sample), sample.position))
    if ordered and len(ordered[0]) > token_budget:
        longest = ordered[0]
        raise ValueError(
            f"row {longest.position} (source {longest.source}) has {len(longest)} tokens, more than the budget of "
            f"{token_budget} tokens of a micro-batch"
        )
    return ordered
