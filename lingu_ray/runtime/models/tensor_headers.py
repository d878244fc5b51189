"""The safetensors files of a model's folder, and what their headers list; weights are read on demand."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from lingu_ray.atomic import read_json
from lingu_ray.errors import UserError

COPY_AGAIN = "copy or download it again"
_SHOWN = 3
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Stored(NamedTuple):
    """A tensor as a file's header lists it; `dtype` by the names of safetensors."""

    file: Path
    name: str
    shape: list[int]
    dtype: str

    def read(self) -> Tensor:
        """The tensor itself."""
        with safe_open(self.file, "pt") as opened:
            return opened.get_tensor(self.name)


def listed(folder: Path, origin: str) -> dict[str, Stored]:
    """Every tensor of the folder's files, by name. Raises UserError where one is missing, cut off or damaged."""
    tensors: dict[str, Stored] = {}
    for file in _weight_files(folder, origin):
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (no mapping)
                    part = opened.get_slice(name)
                    tensors[name] = Stored(file, name, part.get_shape(), part.get_dtype())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{origin}: {file.name} is cut off or damaged ({error}): {COPY_AGAIN}") from error
    return tensors


def stored_dtype(folder: Path, origin: str) -> torch.dtype | None:
    """The dtype of most of the numbers in the folder's safetensors files; None where it is none that is published.

    Raises:
        UserError: a file is missing or cut off.
    """
    numbers = Counter[str]()
    for one in listed(folder, origin).values():
        numbers[one.dtype] += math.prod(one.shape)
    return _FLOATS.get(numbers.most_common(1)[0][0]) if numbers else None


def _weight_files(folder: Path, origin: str) -> list[Path]:
    """The files that Transformers would load: one, or the shards that an index names."""
    single, index = folder / SAFE_WEIGHTS_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
    if single.is_file():
        return [single]
    if not index.is_file():
        pickled = [path.name for path in sorted(folder.glob("*.bin"))][:_SHOWN]
        cure = (
            f"It holds {', '.join(pickled)}: pickle can run code, and is not read. Save the model as safetensors"
            if pickled
            else "Copy or download the model again, its weights too"
        )
        raise UserError(f"{origin}: there is no {single.name} and no {index.name} in it. {cure}")
    try:
        names = sorted(set(read_json(index, "weight_map", cure=COPY_AGAIN)["weight_map"].values()))
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
    except (AttributeError, TypeError) as error:  # a list, or lists in it
        raise UserError(f"{origin}: {index.name} names no files by tensor ({error}): {COPY_AGAIN}") from error
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise UserError(f"{origin}: {index.name} names {', '.join(absent[:_SHOWN])}, not found: {COPY_AGAIN}")
    return [folder / name for name in names]
