"""What autocast does to a tensor."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which the active autocast multiplies this tensor; its own without autocast.

    RoPE and the last norm return float32 under autocast, though attention and output head then round them.
    """
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype
