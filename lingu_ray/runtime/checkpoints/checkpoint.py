"""Checkpoints: model, optimizer and step, all that a run resumes from; here which there are, are whole, and are kept.

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lingu_ray.atomic import flush, flush_tree, move, read_json, write_text
from lingu_ray.content import file_identity
from lingu_ray.errors import UserError
from lingu_ray.runtime.run_folder.folder import CHECKPOINT
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
            "Free some, lower train.keep_last, or set output_dir (of a bucket: LINGU_RAY_CACHE) to another disk, and "
            "move there what the run has"
        )


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
    return f"{place}: no checkpoint is whole: files of {shown}{earlier} are missing, cut off or changed"


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
    """Remove all checkpoints but the `keep_last` newest and the best."""
    found = checkpoints(folder)
    best = _best(found)
    old = [path for path, _ in found[:-keep_last] if path != best]
    for path in old:
        half = path.with_name(f".{path.name}.tmp")  # should this end before all of it is removed
        move(path, half)
        shutil.rmtree(half)


def remove_halves(folder: Path) -> None:
    """Remove what workers that were killed, on any machine, had half written, or half removed."""
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path)
