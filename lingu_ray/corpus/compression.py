"""Files of a source, compressed or not: what their names say about them, and one way to open them."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from lingu_ray import storage

LINES_BYTES = 4 << 20  # of a JSONL or text split


def _open_zstd(file: str | IO[bytes]) -> BufferedIOBase:
    return BufferedReader(pa.input_stream(file, compression="zstd"))


DECOMPRESSORS: dict[str, Callable[[Any], BufferedIOBase]] = {
    ".gz": gzip.open,
    ".tgz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstd,
    ".zstd": _open_zstd,
}


def open_file(path: str) -> BufferedIOBase:
    """Open a file for reading, decompressed as its suffix says; one that was cut off raises when that is met."""
    if not is_compressed(path):
        return cast(BufferedIOBase, storage.open_file(path))
    return DECOMPRESSORS[Path(path).suffix.lower()](storage.open_file(path) if storage.is_remote(path) else path)


def full_suffix(path: str | Path) -> str:
    """What a file's name says about it, in lower case: `.jsonl`, `.jsonl.gz`."""
    name = Path(path).name.lower()
    if name.endswith(".tgz"):
        return ".tar.gz"
    suffixes = Path(name).suffixes
    return "".join(suffixes[-2:] if is_compressed(path) else suffixes[-1:])


def inner_suffix(path: str | Path) -> str:
    """As `full_suffix`, without the suffix of the compression."""
    return Path("_" + full_suffix(path)).with_suffix("").suffix if is_compressed(path) else full_suffix(path)


def is_compressed(path: str | Path) -> bool:
    """Whether a file has to be read from its beginning."""
    return Path(path).suffix.lower() in DECOMPRESSORS


def read_block(file: BufferedIOBase) -> bytes:
    """The next whole lines, about `LINES_BYTES` of them; empty at the end."""
    block = file.read(LINES_BYTES)
    return block + file.readline() if block else block
