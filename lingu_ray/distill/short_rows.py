"""Attention over short rows on a CPU, which in 16 bits costs more than in float32.

PyTorch's kernel makes its backward pass of many small products, each a call of oneDNN whose fixed cost exceeds the work
where rows are short. In float32 a whole step takes some 85 % of the time (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lingu_ray.distill.autocast import compute_dtype

LONGEST = 160
"""Positions of a row up to which float32 is faster, with heads of 64 and of 128."""


def is_short(query_BNTE: Tensor, key_BHTE: Tensor) -> bool:
    """Whether these are whole rows on a CPU, in 16 bits, and short."""
    whole_and_short = query_BNTE.shape[2] == key_BHTE.shape[2] <= LONGEST
    return whole_and_short and key_BHTE.device.type == "cpu" and compute_dtype(query_BNTE).itemsize == 2


def in_float32(
    attention: Callable,
    module: nn.Module,
    query_BNTE: Tensor,
    key_BHTE: Tensor,
    value_BHTE: Tensor,
    *arguments: Any,
    **more: Any,
) -> tuple[Tensor, Tensor | None]:
    """Call SDPA's attention function in float32; the output `[B, T, N, E]` has the dtype that it would have had."""
    dtype = compute_dtype(query_BNTE)
    with torch.autocast("cpu", enabled=False):
        states = (query_BNTE.float(), key_BHTE.float(), value_BHTE.float())
        output_BTNE, weights = attention(module, *states, *arguments, **more)
    return output_BTNE.to(dtype), weights
