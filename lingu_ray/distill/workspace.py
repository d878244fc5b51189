"""Buffers that a loop over chunks makes once and uses again."""

from __future__ import annotations

import torch
from torch import Tensor


class Workspace:
    """Float32 buffers by name. What a name held is overwritten by whoever asks for it next.

    On the CPU large tensors come as fresh pages, and the system's zeroing of those takes longer than most arithmetic.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._buffers: dict[str, Tensor] = {}

    def room(self, name: str, rows: int, columns: int) -> Tensor:
        """`[rows, columns]`, contiguous, content undefined."""
        size = rows * columns
        if name not in self._buffers or len(self._buffers[name]) < size:
            self._buffers[name] = torch.empty(size, device=self.device)
        return self._buffers[name][:size].view(rows, columns)

    def like(self, name: str, tensor: Tensor) -> Tensor:
        """A buffer of the shape of a matrix."""
        return self.room(name, *tensor.shape)
