"""A checkpoint written in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import nn

from lingu_ray.runtime.checkpoints.checkpoint import CheckpointState
from lingu_ray.runtime.checkpoints.checkpoint_writer import CheckpointWriter


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: CheckpointState,
    keep_last: int,
    layout: Literal["whole", "sharded"] = "whole",
) -> None:
    """Write a checkpoint, and wait until it is complete."""
    writer = CheckpointWriter(folder, model, optimizer, layout, keep_last, lambda path: None)
    writer.save(state)
    writer.wait()
