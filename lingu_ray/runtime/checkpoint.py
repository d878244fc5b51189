"""Checkpoints: model, optimizer and step, all that a run resumes from.

Randomness is seeded by step and worker, and the corpus position follows from the step, so neither has a state. Tensors
are saved unsharded and by name: a run resumes with any number of workers, sharded or not. Beside the state stand size
and identity of each file: one that was cut off or changed since is found before it is read.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lingu_ray.atomic import move, whole_folder
from lingu_ray.content import file_identity
from lingu_ray.errors import UserError
from lingu_ray.runtime.distributed import all_sum, is_main_process
from lingu_ray.runtime.optimizer import trained_parameters
from lingu_ray.runtime.sharding import gather_full, local_shard, named_tensors

_NAME = "step-{:08d}"
_STATE = "state.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointState:
    """`step`: steps done. `validation_ce`: mean validation CE of these weights; None where not measured.

    `bad_steps`: how many of the steps were skipped, for their loss or gradient was not finite.
    """

    step: int
    validation_ce: float | None
    bad_steps: int = 0


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise UserError where the disk of `folder` has fewer than `needed` bytes free."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"no disk space for {what}: {needed / 1e6:,.0f} MB needed, {free / 1e6:,.0f} MB free in {folder}. "
            "Free some, lower train.keep_last, or set output_dir (of a bucket: LINGU_RAY_CACHE) to another disk."
        )


def checkpoint_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Size of a checkpoint in bytes: the weights, and two moments of each trained parameter."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    moments = sum(2 * p.numel() * p.element_size() for group in optimizer.param_groups for p in group["params"])
    return weights + moments


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: CheckpointState, keep_last: int
) -> None:
    """Write the checkpoint of `state.step`, then remove all but the `keep_last` newest and the best.

    All workers must call it; the first one writes.
    """
    writes = is_main_process()
    if writes:
        require_space(folder, checkpoint_bytes(model, optimizer), f"the checkpoint of step {state.step}")
    weights = gather_full(named_tensors(model), writes)
    moments = {name: gather_full(kept, writes) for name, kept in _moments(model, optimizer).items()}
    if not writes:
        return
    with whole_folder(folder / _NAME.format(state.step)) as temporary:
        save_file(weights, temporary / "model.safetensors")
        torch.save(moments, temporary / "optimizer.pt")
        files = {
            path.name: {"bytes": path.stat().st_size, "identity": file_identity(path)} for path in temporary.iterdir()
        }
        (temporary / _STATE).write_text(json.dumps({**asdict(state), "files": files}))
    _prune(folder, keep_last)


def checkpoints(folder: Path) -> list[tuple[Path, CheckpointState]]:
    """All complete checkpoints, oldest first: each file is there, and as long as it was written."""
    found = [(path, _read_state(path)) for path in sorted(folder.glob("step-*"))]
    return [(path, state[0]) for path, state in found if state is not None]


def set_aside_damaged(folder: Path) -> None:
    """Rename the newest checkpoints that are not what was written, up to the first that is; each is warned of.

    Files above 64 MiB are compared by a sample of their blocks.
    """
    for path in sorted(folder.glob("step-*"), reverse=True):
        found = _read_state(path)
        if found is not None and all(file_identity(path / name) == f["identity"] for name, f in found[1].items()):
            return
        aside = path.with_name(f"damaged-{path.name}")
        move(path, aside)
        log.warning(
            "%s: a file is missing, cut off or changed; set aside as %s, and not resumed from", path, aside.name
        )


def _read_state(path: Path) -> tuple[CheckpointState, dict[str, Any]] | None:
    """State of a checkpoint, and its files by name; None where one is missing, or longer or shorter than written."""
    try:
        written = json.loads((path / _STATE).read_text(encoding="utf-8"))
        files = written.pop("files", {})  # earlier versions wrote none
        if any((path / name).stat().st_size != file["bytes"] for name, file in files.items()):
            return None
    except (OSError, ValueError):
        return None
    return CheckpointState(**written), files


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> CheckpointState | None:
    """Load the newest checkpoint that is not damaged; None where there is none. All workers must call it."""
    if is_main_process():
        set_aside_damaged(folder)
    newest = [state.step for _, state in checkpoints(folder)[-1:]] if is_main_process() else []
    step = int(all_sum([sum(newest)], next(model.parameters()).device)[0])  # as the main process says
    if step == 0:
        return None
    path = folder / _NAME.format(step)
    state = dict(checkpoints(folder))[path]
    tensors = named_tensors(model)
    with safe_open(path / "model.safetensors", "pt") as weights, torch.no_grad():
        if different := sorted(tensors.keys() ^ weights.keys()):
            raise UserError(
                f"{path}: its tensors are not those of the model, such as {', '.join(different[:3])}: it was made of "
                "another model, or by other versions. Choose another name=…, or remove the folder to start again"
            )
        for name, tensor in tensors.items():
            tensor.copy_(local_shard(weights.get_tensor(name), tensor))
    moments = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
    names = {id(tensor): name for name, tensor in tensors.items()}
    kept = {
        place: {
            # AdamW's step is a scalar, which is not sharded
            key: local_shard(value, parameter) if value.shape == parameter.shape else value
            for key, value in moments[names[id(parameter)]].items()
        }
        for place, parameter in enumerate(trained_parameters(optimizer))
    }
    optimizer.load_state_dict({"state": kept, "param_groups": optimizer.state_dict()["param_groups"]})
    return state


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the lowest validation CE (of equal ones the newest); None where none was validated."""
    scored = [
        (state.validation_ce, -state.step, path)
        for path, state in checkpoints(folder)
        if state.validation_ce is not None and math.isfinite(state.validation_ce)
    ]
    return min(scored)[2] if scored else None


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """The optimizer's state of each parameter, by the parameter's name."""
    names = {id(tensor): name for name, tensor in named_tensors(model).items()}
    return {names[id(p)]: optimizer.state[p] for p in trained_parameters(optimizer)}


def _prune(folder: Path, keep_last: int) -> None:
    found = [path for path, _ in checkpoints(folder)]
    best = best_checkpoint(folder)
    leftovers = list(folder.glob(".step-*.tmp"))  # of a worker that was killed, on any machine
    for path in (*found[:-keep_last], *leftovers):
        if path != best:
            shutil.rmtree(path)
