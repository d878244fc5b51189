"""Checkpoints: model, optimizer and step, all that a run resumes from.

Randomness is seeded by step, and row or worker, and the corpus position follows from the step, so neither has a state.
Tensors are saved by name: whole, or as pieces of which any worker reads the rows that it keeps, so a run resumes with
any number of workers, sharded or not. Beside the state stand size and identity of each file: one that was cut off or
changed since is found before it is read. The state is written last: a checkpoint without it is none.

The files are safetensors with a JSON header rather than those of `torch.distributed.checkpoint`: its metadata is a
pickle, which could execute what somebody put there. Its writer of safetensors has none, but to save in the background
takes a second process group, over gloo, on which its threads talk beside the training.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lingu_ray.atomic import flush, flush_tree, move, read_json, write_text
from lingu_ray.content import file_identity
from lingu_ray.errors import UserError
from lingu_ray.runtime.checkpoints.tensor_files import TensorFiles
from lingu_ray.runtime.run_folder.folder import CHECKPOINT
from lingu_ray.runtime.training.distributed import all_sum, is_main_process
from lingu_ray.runtime.training.optimizer import trained_parameters
from lingu_ray.runtime.training.sharding import like, local_piece, named_tensors
from lingu_ray.storage import origin

_NAME = "step-{:08d}"
_STATE = "state.json"
_ABSENT = (FileNotFoundError, NotADirectoryError)
"""What says that a file is not there; any other OSError says nothing of it."""
_SHOWN = 3

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointState:
    """`step`: steps done. `validation_ce`: mean validation CE of these weights; None where not measured.

    `bad_steps`: how many of the steps were skipped, for their loss or gradient was not finite.
    """

    step: int
    validation_ce: float | None
    bad_steps: int = 0


_KEYS = {field.name for field in fields(CheckpointState)}
_REQUIRED = ("step", "validation_ce")  # earlier versions wrote no more


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


def saved_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """What a checkpoint holds, by kind of file: `model` by tensor names, `optimizer` by `exp_avg.NAME` and so on."""
    tensors = named_tensors(model)
    names = {id(tensor): name for name, tensor in tensors.items()}
    moments = {
        f"{key}.{names[id(parameter)]}": value
        for parameter in trained_parameters(optimizer)
        for key, value in optimizer.state[parameter].items()
    }
    return {"model": tensors, "optimizer": moments}


def temporary_folder(folder: Path, step: int, token: int) -> Path:
    """Where the checkpoint of a step is written before it is complete."""
    return folder / f".{_NAME.format(step)}.{token:08x}.tmp"


def complete(temporary: Path, state: CheckpointState, files: Mapping[str, Any]) -> Path:
    """Make a checkpoint of a temporary folder in which all files are written; returns it.

    `files`: `bytes` and `identity` of each, by name.
    """
    write_text(temporary / _STATE, json.dumps({**asdict(state), "files": files}))
    flush_tree(temporary)
    path = temporary.with_name(_NAME.format(state.step))
    move(temporary, path)
    flush(path.parent)
    return path


def checkpoint_folders(folder: Path) -> list[Path]:
    """Folders of all checkpoints, damaged ones too, oldest first. Raises OSError where storage does not list them."""
    try:
        names = os.listdir(folder)  # Path.glob would take a folder that it may not read for an empty one
    except _ABSENT:
        return []
    return [folder / name for name in sorted(names) if CHECKPOINT.fullmatch(name)]


def checkpoints(folder: Path) -> list[tuple[Path, CheckpointState]]:
    """All complete checkpoints, oldest first: each file is there, and as long as it was written.

    Raises:
        UserError: one is of a later version.
        OSError: storage fails, so nothing is known of one.
    """
    found = [(path, _read_state(path)) for path in checkpoint_folders(folder)]
    return [(path, state[0]) for path, state in found if state is not None]


def set_aside_damaged(folder: Path) -> None:
    """Rename the checkpoints after the newest one that is what was written; each is warned of.

    Files above 64 MiB are compared by a sample of their blocks.

    Raises:
        UserError: there are checkpoints, and none is what was written: all keep their names.
        OSError: storage fails, so nothing is known of one; as above.
    """
    damaged: list[Path] = []
    for path in reversed(checkpoint_folders(folder)):
        if _is_as_written(path):
            break
        damaged.append(path)
    else:
        if damaged:
            raise UserError(
                f"{none_is_whole(origin(folder), damaged)}. Put them back from a copy; to train from the first step "
                "again, remove that folder, or choose another name=…"
            )
    for path in damaged:
        aside = path.with_name(f"damaged-{path.name}")
        move(path, aside)
        log.warning(
            "%s: a file is missing, cut off or changed; set aside as %s, and not resumed from", path, aside.name
        )


def none_is_whole(place: Path | str, damaged: Sequence[Path]) -> str:
    """The message that all checkpoints of a run are damaged."""
    names = sorted(path.name for path in damaged)
    earlier = f" and {len(names) - _SHOWN} earlier" if len(names) > _SHOWN else ""
    shown = ", ".join(names[-_SHOWN:])
    return f"{place}: no checkpoint is whole: of {shown}{earlier} files are missing, cut off or changed"


@contextmanager
def storage_failures_explained(folder: Path) -> Iterator[None]:
    """In a command, storage that fails while checkpoints are read is a UserError; of a worker's, Ray tries again."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{origin(folder)}: its checkpoints cannot be read now: {error}. See that the storage answers, and run the "
            "same command again; a checkpoint that stays unreadable can be moved away, and the one before is taken"
        ) from error


def _is_as_written(path: Path) -> bool:
    found = _read_state(path)
    try:
        return found is not None and all(file_identity(path / name) == f["identity"] for name, f in found[1].items())
    except _ABSENT:
        return False


def written_state(path: Path) -> dict[str, Any] | None:
    """What the `state.json` of a checkpoint says; None where there is none, or it was cut off."""
    try:
        return read_json(path / _STATE, *_REQUIRED)
    except (*_ABSENT, UserError):
        return None


def _read_state(path: Path) -> tuple[CheckpointState, dict[str, Any]] | None:
    """State of a checkpoint, and its files by name; None where one is missing, or longer or shorter than written, or
    where the state is of another step than the folder.
    """
    written = written_state(path)
    if written is None or written["step"] != int(path.name.removeprefix("step-")):
        return None
    files = written.pop("files", {})  # earlier versions wrote none
    if unknown := sorted(written.keys() - _KEYS):
        raise UserError(
            f"{path / _STATE} is of a later version of lingu_ray: it has {', '.join(unknown)}. Use that version, or "
            "move the checkpoint away, and the one before is taken"
        )
    try:
        if any((path / name).stat().st_size != file["bytes"] for name, file in files.items()):
            return None
    except _ABSENT:
        return None
    return CheckpointState(**written), files


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> CheckpointState | None:
    """Load the newest checkpoint that is not damaged; None where there is none. All workers must call it.

    Raises:
        UserError, OSError: as `set_aside_damaged`; a checkpoint is of another model, or lacks rows.
    """
    if is_main_process():
        set_aside_damaged(folder)
    newest = [state.step for _, state in checkpoints(folder)[-1:]] if is_main_process() else []
    step = int(all_sum([sum(newest)], next(model.parameters()).device)[0])  # as the main process says
    if step == 0:
        return None
    path = folder / _NAME.format(step)
    state = dict(checkpoints(folder))[path]
    load_weights(path, model)
    _load_moments(path, named_tensors(model), optimizer)
    return state


def load_weights(path: Path, model: nn.Module) -> None:
    """Fill the model, or what this worker keeps of it, with the weights of the checkpoint at `path`.

    Raises:
        UserError: they are those of another model.
    """
    weights, tensors = _tensor_files(path, "model"), named_tensors(model)
    saved, ours = weights.shapes.items(), {name: tuple(tensor.shape) for name, tensor in tensors.items()}.items()
    if different := sorted({name for name, _ in saved ^ ours}):
        raise UserError(
            f"{path}: its tensors are not those of the model, such as {', '.join(different[:3])}: it was made of "
            "another model, or by other versions. Choose another name=…, or remove the folder to start again"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            _read(weights, name, tensor)


def _load_moments(path: Path, tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    moments = _tensor_files(path, "optimizer")
    if (path / "optimizer.pt").exists():  # of earlier versions
        of_name = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
        named = {f"{key}.{n}": value for n, kept in of_name.items() for key, value in kept.items()}
        moments = TensorFiles.of(path, named)
    keys: dict[str, list[str]] = defaultdict(list)
    for saved in moments.shapes:
        key, name = saved.split(".", 1)
        keys[name].append(key)
    names = {id(tensor): name for name, tensor in tensors.items()}
    state = {
        place: {key: _read_moment(moments, key, name, parameter) for key in keys[name]}
        for place, parameter in enumerate(trained_parameters(optimizer))
        for name in [names[id(parameter)]]
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _tensor_files(path: Path, kind: str) -> TensorFiles:
    """The checkpoint's files of a kind, `model` or `optimizer`. Raises OSError where storage does not list them."""
    names = [name for name in sorted(os.listdir(path)) if name.startswith(kind) and name.endswith(".safetensors")]
    return TensorFiles(path, [path / name for name in names])


def _read(files: TensorFiles, name: str, into: Tensor) -> None:
    """Fill a tensor, or what this worker keeps of it."""
    if not into.ndim:
        into.copy_(files.scalar(name))
        return
    piece = local_piece(into)
    files.read(name, piece.rows, piece.first)


def _read_moment(moments: TensorFiles, key: str, name: str, parameter: Tensor) -> Tensor:
    saved = f"{key}.{name}"
    if key == "step" or not parameter.ndim:  # neither is sharded
        return moments.scalar(saved)
    piece = local_piece(parameter)
    rows = torch.empty_like(piece.rows)
    moments.read(saved, rows, piece.first)
    return like(parameter, rows)


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the lowest validation CE (of equal ones the newest); None where none was validated."""
    return _best(checkpoints(folder))


def _best(found: list[tuple[Path, CheckpointState]]) -> Path | None:
    scored = [
        (state.validation_ce, -state.step, path)
        for path, state in found
        if state.validation_ce is not None and math.isfinite(state.validation_ce)
    ]
    return min(scored)[2] if scored else None


def prune(folder: Path, keep_last: int) -> None:
    """Remove all checkpoints but the `keep_last` newest and the best, and what was never completed."""
    found = checkpoints(folder)
    best = _best(found)
    old = [path for path, _ in found[:-keep_last] if path != best]
    leftovers = folder.glob(".step-*.tmp")  # of a worker that was killed, on any machine
    for path in (*old, *leftovers):
        shutil.rmtree(path)
