"""Buffers that a loop over chunks allocates once and reuses."""

from __future__ import annotations

import torch
from torch import Tensor


class Workspace:
    """Float32 buffers by name. The content of a buffer is undefined after the next request for its name.

    On the CPU a large new tensor gets fresh pages, and zeroing those takes longer than most arithmetic.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._buffers: dict[str, Tensor] = {}

    def room(self, name: str, rows: int, columns: int) -> Tensor:
        """`[rows, columns]`, contiguous, content undefined."""
        size = rows * columns
        if name not in self._buffers or len(self._buffers[name]) < size:
            self._buffers[name] = torch.empty(size, dtype=torch.float32, device=self.device)
        return self._buffers[name][:size].view(rows, columns)

    def like(self, name: str, tensor: Tensor) -> Tensor:
        """A buffer of the shape of a matrix."""
        return self.room(name, *tensor.shape)
