"""Memory that a GPU copies from by itself."""

from __future__ import annotations

from torch import Tensor


def pinned(tensor: Tensor) -> Tensor:
    """A CPU tensor in pinned memory; one that was expanded is written out, as CUDA asks."""
    return tensor.contiguous().pin_memory()
