"""Tensors in safetensors files; several may have pieces of one tensor: the rows that a worker keeps of a sharded one.

A file's header says which row each piece begins with and how many rows there are in all, so any worker reads the rows
that it keeps, whoever wrote them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lingu_ray.errors import UserError

_ROWS = "rows"
"""Key of the header: JSON that gives, for each piece, its first row and the number of rows of the tensor."""


@dataclass(frozen=True)
class Piece:
    """Rows `first` and following of a tensor that has `total` rows along its first dimension; a scalar has one."""

    rows: Tensor
    first: int
    total: int


def whole(tensor: Tensor) -> Piece:
    """The piece that is the tensor."""
    return Piece(tensor, 0, len(tensor) if tensor.ndim else 1)


def write_pieces(path: Path, pieces: Mapping[str, Piece]) -> None:
    """Write pieces, contiguous and on the CPU, to one file. Raises OSError or SafetensorError."""
    rows = {name: [p.first, p.total] for name, p in pieces.items() if p.rows.ndim and len(p.rows) < p.total}
    save_file({name: piece.rows for name, piece in pieces.items()}, path, {_ROWS: json.dumps(rows)})


class TensorFiles:
    """The tensors of some files of a folder, by name. Files are mapped, and only what is asked for is read."""

    def __init__(self, folder: Path, paths: Iterable[Path] = ()):
        self.folder = folder
        self._pieces: dict[str, list[tuple[int, Any]]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in paths:
            file = safe_open(path, "pt")
            split = json.loads((file.metadata() or {}).get(_ROWS, "{}"))
            for name in file.keys():  # noqa: SIM118 (no mapping)
                rows = file.get_slice(name)
                shape = tuple(rows.get_shape())
                first, total = split.get(name, (0, shape[0] if shape else 1))
                self.shapes[name] = (total, *shape[1:]) if shape else ()
                self._pieces.setdefault(name, []).append((first, rows if shape else file.get_tensor(name).clone()))

    @classmethod
    def of(cls, folder: Path, tensors: Mapping[str, Tensor]) -> Self:
        """The same for tensors that are in memory, read from a folder."""
        files = cls(folder)
        files.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        files._pieces = {name: [(0, tensor)] for name, tensor in tensors.items()}
        return files

    def scalar(self, name: str) -> Tensor:
        """A tensor without dimensions."""
        return self._pieces[name][0][1]

    def read(self, name: str, into: Tensor, first: int) -> None:
        """Copy rows `first` and following of a tensor into `into`, as many as it has, on its device.

        Raises:
            UserError: the files lack some of them.
        """
        end, copied = first + len(into), 0
        for begin, rows in self._pieces[name]:
            length = len(rows) if isinstance(rows, Tensor) else rows.get_shape()[0]
            low, high = max(first, begin), min(end, begin + length)
            if low < high:
                into[low - first : high - first].copy_(rows[low - begin : high - begin])
                copied += high - low
        if copied < len(into):
            raise UserError(
                f"{self.folder}: of rows {first} to {end - 1} of {name} it has {copied}, so a file of it is missing. "
                "Put it back, or move the folder away, and the checkpoint before is taken"
            )
