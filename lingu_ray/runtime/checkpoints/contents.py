"""What a checkpoint holds of a model and its optimizer: tensors by name, as they are saved, and loaded.

They are whole, or pieces of which any worker reads the rows that it keeps. Of frozen weights, which are those of the
model that the run was started from, there is the first row, by which they are known again.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor, nn

from lingu_ray.errors import UserError
from lingu_ray.runtime.checkpoints.checkpoint import CheckpointState, checkpoints, remove_halves, set_aside_damaged
from lingu_ray.runtime.checkpoints.tensor_files import TensorFiles
from lingu_ray.runtime.training.distributed import all_sum, is_main_process
from lingu_ray.runtime.training.optimizer import trained_parameters
from lingu_ray.runtime.training.sharding import first_row, like, local_piece, named_tensors

_FROZEN = "frozen."
"""Before the name of a frozen tensor, whose first row is saved."""


def checkpoint_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Size of a checkpoint in bytes: weights that learn, and two moments of each trained parameter."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    moments = sum(2 * p.numel() * p.element_size() for group in optimizer.param_groups for p in group["params"])
    return weights + moments


def saved_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """What a checkpoint holds, by kind of file: `model` by tensor names, `optimizer` by `exp_avg.NAME` and so on.

    All workers must call it.
    """
    tensors = named_tensors(model)
    frozen = {name for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter) and not tensor.requires_grad}
    names = {id(tensor): name for name, tensor in tensors.items()}
    moments = {
        f"{key}.{names[id(parameter)]}": value
        for parameter in trained_parameters(optimizer)
        for key, value in optimizer.state[parameter].items()
    }
    kept = {_FROZEN + n if n in frozen else n: first_row(t) if n in frozen else t for n, t in tensors.items()}
    return {"model": kept, "optimizer": moments}


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> CheckpointState | None:
    """Load the newest checkpoint that is not damaged; None where there is none. All workers must call it.

    Before, while nobody writes one, halves of others are removed: they take the room of the next.

    Raises:
        UserError, OSError: as `set_aside_damaged`; a checkpoint is of another model, or lacks rows.
    """
    if is_main_process():
        remove_halves(folder)
        set_aside_damaged(folder)
    newest = [state.step for _, state in checkpoints(folder)[-1:]] if is_main_process() else []
    step = int(all_sum([sum(newest)], next(model.parameters()).device)[0])  # as the main process says
    if step == 0:
        return None
    path, state = next(one for one in checkpoints(folder) if one[1].step == step)
    load_weights(path, model)
    _load_moments(path, named_tensors(model), optimizer)
    return state


def load_weights(path: Path, model: nn.Module) -> None:
    """Fill the model, or what this worker keeps of it, with the weights of the checkpoint at `path`. All workers must
    call it.

    Raises:
        UserError: they are those of another model, or what was frozen is not what the model has.
    """
    weights, tensors = _tensor_files(path, "model"), named_tensors(model)
    saved = {name: shape for name, shape in weights.shapes.items() if not name.startswith(_FROZEN)}
    frozen = {name.removeprefix(_FROZEN) for name in weights.shapes.keys() - saved.keys()}
    ours = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name not in frozen}
    if different := sorted({name for name, _ in saved.items() ^ ours.items()} | (frozen - tensors.keys())):
        raise UserError(
            f"{path}: its tensors are not those of the model, such as {', '.join(different[:3])}: it was made of "
            "another model, or by other versions. Choose another name=…, or remove the folder to start again"
        )
    with torch.no_grad():
        for name in ours:
            _read(weights, name, tensors[name])
        other = [name for name in sorted(frozen) if not _is_same_row(weights, name, first_row(tensors[name]))]
    if other:
        raise UserError(
            f"{path}: what was frozen is not what the student has now, such as {', '.join(other[:3])}: it has changed "
            "since the run was started. Put back the student of that time"
        )


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


def _is_same_row(files: TensorFiles, name: str, row: Tensor) -> bool:
    saved = torch.empty_like(row, dtype=torch.float32)  # bf16 may hold it by now, or did so then
    _read(files, _FROZEN + name, saved)
    return saved.equal(row.float())


def _read_moment(moments: TensorFiles, key: str, name: str, parameter: Tensor) -> Tensor:
    saved = f"{key}.{name}"
    if key == "step" or not parameter.ndim:  # neither is sharded
        return moments.scalar(saved)
    piece = local_piece(parameter)
    rows = torch.empty_like(piece.rows)
    moments.read(saved, rows, piece.first)
    return like(parameter, rows)
