"""Writes a run's checkpoints: small ones while training waits, large ones by all workers in the background.

In the background each worker copies what it writes to the CPU, which is all that training waits for, and writes it in a
thread: rows of sharded tensors, and its share of those that all workers have. A checkpoint is complete when all of them
have written; until then there is the one before. The threads never talk to each other: workers agree between steps.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lingu_ray.atomic import flush, write_json
from lingu_ray.content import file_identity
from lingu_ray.errors import UserError
from lingu_ray.runtime.checkpoints.checkpoint import (
    CheckpointState,
    complete,
    prune,
    require_space,
    temporary_folder,
)
from lingu_ray.runtime.checkpoints.contents import checkpoint_bytes, saved_tensors
from lingu_ray.runtime.checkpoints.tensor_files import Piece, whole, write_pieces
from lingu_ray.runtime.training.distributed import all_sum, is_main_process
from lingu_ray.runtime.training.sharding import gather_full, local_piece
from lingu_ray.storage import origin
from lingu_ray.waiting import waiting

WHOLE_UP_TO = 256 * 2**20
"""Bytes of a checkpoint that is written at once by the first worker where nothing else is set."""

Pieces = dict[str, dict[str, Piece]]
"""By kind of file (`model`, `optimizer`) and name of the tensor."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Writing:
    """A checkpoint that is being written by `parts` workers; `part`: this worker's files."""

    state: CheckpointState
    temporary: Path
    parts: int
    part: Future[None]


class CheckpointWriter:
    """Writes checkpoints of a model and its optimizer. All workers call the same methods at the same steps.

    `layout`: `whole` or `sharded`; `auto`: by size. `keep_last`: how many are kept, besides the best.
    `completed` is called with each complete checkpoint on the first worker, in a thread; the next one waits for it.
    `records`: files of the first worker that are on the disk before it, for a resumed run adds to them alone.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        layout: Literal["auto", "whole", "sharded"],
        keep_last: int,
        completed: Callable[[Path], None],
        records: Sequence[Path] = (),
    ):
        self.folder, self.model, self.optimizer = folder, model, optimizer
        self.keep_last, self.completed, self.records = keep_last, completed, records
        self.bytes = checkpoint_bytes(model, optimizer)
        self.in_background = layout == "sharded" or (layout == "auto" and self.bytes > WHOLE_UP_TO)
        self.device = next(model.parameters()).device
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self._threads = ThreadPoolExecutor(1, "checkpoint")
        self._copies: dict[str, Tensor] = {}
        self._writing: _Writing | None = None
        self._completing: Future[None] | None = None

    def save(self, state: CheckpointState) -> None:
        """Write the checkpoint of `state.step`, or begin to, after the one before is complete.

        Raises:
            UserError: the disk is full; the one before could not be written.
        """
        self.wait()
        if is_main_process():
            require_space(self.folder, self.bytes, f"the checkpoint of step {state.step}")
            for path in filter(Path.exists, self.records):
                flush(path)
        temporary, parts = self._agree(state.step)
        tensors = saved_tensors(self.model, self.optimizer)
        pieces = {kind: self._pieces(named, parts) for kind, named in tensors.items()}
        if self.in_background:
            pieces = {kind: self._copied(kind, of_name) for kind, of_name in pieces.items()}
        part = self._threads.submit(_write_part, temporary, pieces, self.rank, parts)
        self._writing = _Writing(state, temporary, parts, part)
        if not self.in_background:
            self.wait()

    def poll(self) -> None:
        """Between two steps: complete the checkpoint if all workers have written. Raises what a thread has raised."""
        if self._completing is not None and self._completing.done():
            self._completing.result()
        if self._writing is None:
            return
        done = self._writing.part.done()
        if done:
            self._writing.part.result()
        if all_sum([done], self.device)[0] == self.world:
            self._complete(self._writing)

    def wait(self) -> None:
        """Wait until everything is written, complete, and followed up on the first worker.

        Raises what a thread has raised.
        """
        with waiting("a checkpoint to be written", f"the storage of {origin(self.folder)}"):
            if self._writing is not None:
                self._writing.part.result()
                all_sum([1], self.device)  # all have written
                self._complete(self._writing)
            if self._completing is not None:
                self._completing.result()
        all_sum([1], self.device)  # a worker that left while the first one still puts the checkpoint would end it, too

    def _complete(self, writing: _Writing) -> None:
        self._writing = None
        if not is_main_process():
            return
        lists, files = sorted(writing.temporary.glob("files*.json")), {}
        if len(lists) < writing.parts:
            raise OSError(  # which is tried again: storage that several nodes share may show a file late
                f"{writing.temporary}: the files of {len(lists)} of {writing.parts} workers are seen here, though all "
                "have written: see that all nodes share this folder and see each other's files"
            )
        for listed in lists:
            files |= json.loads(listed.read_text(encoding="utf-8"))
            listed.unlink()
        path = complete(writing.temporary, writing.state, files)
        log.info("saved step %d", writing.state.step)
        self._completing = self._threads.submit(self._after, path)

    def _after(self, path: Path) -> None:
        prune(self.folder, self.keep_last)
        self.completed(path)

    def _agree(self, step: int) -> tuple[Path, int]:
        """The folder to write to, and how many workers do: all that see it, if it is on storage that they share."""
        token = 0
        if is_main_process():
            token = secrets.randbits(32)
            temporary_folder(self.folder, step, token).mkdir(parents=True)
        temporary = temporary_folder(self.folder, step, int(all_sum([token], self.device)[0]))
        shared = self.in_background and all_sum([temporary.exists()], self.device)[0] == self.world
        return temporary, self.world if shared else 1

    def _pieces(self, tensors: Mapping[str, Tensor], parts: int) -> dict[str, Piece]:
        """What this worker writes of the tensors, if `parts` workers write."""
        if parts < self.world or not self.in_background:  # the first worker writes all, from the CPU
            return {name: whole(tensor) for name, tensor in gather_full(dict(tensors), is_main_process()).items()}
        sharded = {name: local_piece(tensor) for name, tensor in tensors.items() if isinstance(tensor, DTensor)}
        ours = _share({name: tensor for name, tensor in tensors.items() if name not in sharded}, self.rank, parts)
        return {name: p for name, p in sharded.items() if len(p.rows)} | {n: local_piece(t) for n, t in ours.items()}

    def _copied(self, kind: str, pieces: Mapping[str, Piece]) -> dict[str, Piece]:
        """The pieces, copied into memory of the CPU that is kept for the next checkpoint, as fresh memory is slow."""
        copied = {}
        for name, piece in pieces.items():
            rows, key = piece.rows, f"{kind}.{name}"
            if key not in self._copies:
                self._copies[key] = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=rows.is_cuda)
            copy = self._copies[key].copy_(rows, non_blocking=True)
            copied[name] = Piece(copy, piece.first, piece.total)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return copied


def _share(tensors: Mapping[str, Tensor], rank: int, parts: int) -> dict[str, Tensor]:
    """The tensors that one of `parts` workers writes of those that all have: about equally many bytes each."""
    loads, ours = [0] * parts, {}
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].nbytes):
        lightest = loads.index(min(loads))
        loads[lightest] += tensor.nbytes
        if lightest == rank:
            ours[name] = tensor
    return ours


def _write_part(temporary: Path, pieces: Pieces, rank: int, parts: int) -> None:
    """Write one worker's files, and a list of them. Raises UserError where the disk does not take them."""
    if rank >= parts:
        return
    suffix, files = f"-{rank + 1:05d}-of-{parts:05d}" if parts > 1 else "", {}
    try:
        for kind, of_name in pieces.items():
            path = temporary / f"{kind}{suffix}.safetensors"
            write_pieces(path, of_name)
            flush(path)
            files[path.name] = {"bytes": path.stat().st_size, "identity": file_identity(path)}
        write_json(temporary / f"files{suffix}.json", files)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{temporary}: the checkpoint cannot be written: {error}. See that the disk is there and has room, and run "
            "the same command again: it resumes from the checkpoint before"
        ) from error
