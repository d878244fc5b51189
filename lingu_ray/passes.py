"""Lengths cut into passes of a model: padding is weighed against the number of passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

PASS_TOKENS, GPU_PASS_TOKENS = 128, 4096
"""Cost of one more pass, in tokens, on a CPU and on a GPU.

On a GPU it is an estimate: what a model of a few hundred million parameters computes while a pass is launched.
"""


def tokens_of_a_pass(device: torch.device) -> int:
    """What one more pass costs on this device, in tokens."""
    return PASS_TOKENS if device.type == "cpu" else GPU_PASS_TOKENS


def cheapest_cut(lengths: Sequence[int], most: int, pass_tokens: int) -> list[slice]:
    """Cut lengths, longest first, into groups that are padded to their longest: at most `most` tokens, or one alone.

    Of all ways to cut them it takes the cheapest: fewest padded tokens, plus `pass_tokens` a group.
    """
    length_N, cost_N, begin_of = np.array(lengths), np.zeros(len(lengths) + 1), [0]
    first = 0  # the earliest begin of a last group that fits: it only moves on, as lengths fall
    for end in range(1, len(lengths) + 1):
        while first < end - 1 and lengths[first] * (end - first) > most:
            first += 1
        # of the cheapest cut of the first `end` lengths, by where its last group begins
        cost = cost_N[first:end] + length_N[first:end] * np.arange(end - first, 0, -1) + pass_tokens
        begin_of.append(first + int(cost.argmin()))
        cost_N[end] = cost.min()
    groups, end = [], len(lengths)
    while end:
        groups.append(slice(begin_of[end], end))
        end = begin_of[end]
    return groups[::-1]
