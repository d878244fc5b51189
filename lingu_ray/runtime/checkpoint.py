"""Checkpoints with everything to go on: model, optimiser, step. Each is written whole or not at all.

Randomness is seeded by step and worker, and the corpus position follows from the step, so neither needs a state.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import nn

from lingu_ray.errors import UserError

_NAME = "step-{:08d}"


@dataclass(frozen=True)
class CheckpointState:
    """`step`: optimiser steps done. `validation_ce`: the newest mean validation CE, if there was one."""

    step: int
    validation_ce: float | None


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise UserError when the disk that holds `folder` has fewer than `needed` bytes free."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"no disk space for {what}: {needed / 1e6:,.0f} MB needed, {free / 1e6:,.0f} MB free in {folder}. "
            "Free some, lower train.keep_last, or set output_dir to another disk."
        )


def checkpoint_bytes(model: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Size of a checkpoint: the weights, and two moments of each trained parameter."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    moments = sum(2 * p.numel() * p.element_size() for group in optimiser.param_groups for p in group["params"])
    return weights + moments


def save_checkpoint(
    folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, state: CheckpointState, keep_last: int
) -> None:
    """Write the checkpoint of `state.step`, then remove all but the `keep_last` newest and the best."""
    require_space(folder, checkpoint_bytes(model, optimiser), f"the checkpoint of step {state.step}")
    temporary, final = folder / f".{_NAME.format(state.step)}.tmp", folder / _NAME.format(state.step)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    save_model(model, str(temporary / "model.safetensors"))
    torch.save(optimiser.state_dict(), temporary / "optimiser.pt")
    (temporary / "state.json").write_text(json.dumps(asdict(state)))
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _prune(folder, keep_last)


def checkpoints(folder: Path) -> list[tuple[Path, CheckpointState]]:
    """All whole checkpoints, oldest first."""
    found = sorted(path for path in folder.glob("step-*") if (path / "state.json").exists())
    return [(path, CheckpointState(**json.loads((path / "state.json").read_text()))) for path in found]


def load_checkpoint(
    folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, device: torch.device
) -> CheckpointState | None:
    """Restore the newest checkpoint into model and optimiser; None when there is none."""
    found = checkpoints(folder)
    if not found:
        return None
    path, state = found[-1]
    load_model(model, path / "model.safetensors", device=str(device))
    optimiser.load_state_dict(torch.load(path / "optimiser.pt", map_location=device, weights_only=True))
    return state


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the lowest validation CE (of equals, the newest); None when none was validated."""
    scored = [(state.validation_ce, -state.step, path) for path, state in checkpoints(folder) if state.validation_ce]
    return min(scored)[2] if scored else None


def _prune(folder: Path, keep_last: int) -> None:
    found = [path for path, _ in checkpoints(folder)]
    best = best_checkpoint(folder)
    for path in found[:-keep_last]:
        if path != best:
            shutil.rmtree(path)
