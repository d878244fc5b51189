"""Files of a source, compressed or not: what their names say about them, and one way to open them."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from io import BufferedIOBase, BufferedReader, RawIOBase
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from lingu_ray import storage

LINES_BYTES = 4 << 20  # of a JSONL or text split
_READ = 1 << 18  # compressed bytes at once


class _Streams(RawIOBase):
    """What compressed streams hold that follow each other in a file, or padding of zeros.

    Python's own files take a stream that is damaged at its beginning, and all after it, for the end.
    """

    def __init__(self, file: str | IO[bytes], decompressor: Callable[[], Any]) -> None:
        self.file = open(file, "rb") if isinstance(file, str) else file  # noqa: SIM115  (closed by `close`)
        self.decompressor = decompressor
        self.stream = decompressor()

    def readable(self) -> bool:
        """It is: a `BufferedReader` asks."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a part of the buffer; 0 at the end of the file."""
        data = b""
        while not data:
            read = self.file.read(_READ) if self.stream.eof or self.stream.needs_input else b""
            if self.stream.eof:
                if not (following := (self.stream.unused_data + read).lstrip(b"\0")):
                    if read:
                        continue
                    return 0
                self.stream, read = self.decompressor(), following
            elif self.stream.needs_input and not read:
                raise EOFError("Compressed file ended before the end-of-stream marker was reached")
            data = self.stream.decompress(read, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file as well."""
        self.file.close()
        super().close()


def _open_zstd(file: str | IO[bytes]) -> BufferedIOBase:
    return BufferedReader(pa.input_stream(file, compression="zstd"))


DECOMPRESSORS: dict[str, Callable[[Any], BufferedIOBase]] = {
    ".gz": gzip.open,
    ".tgz": gzip.open,
    ".bz2": lambda file: BufferedReader(_Streams(file, bz2.BZ2Decompressor)),
    ".xz": lambda file: BufferedReader(_Streams(file, lzma.LZMADecompressor)),
    ".zst": _open_zstd,
    ".zstd": _open_zstd,
}


def open_file(path: str) -> BufferedIOBase:
    """Open a file for reading, decompressed as its suffix says; one that was cut off raises when that is met.

    Raises:
        EOFError: a compressed file without a byte: what has no content has some bytes, compressed.
    """
    if not is_compressed(path):
        return cast(BufferedIOBase, storage.open_file(path))
    with storage.open_file(path, buffering=0) as file:
        if not file.read(1):
            raise EOFError("it is empty, which no compressed file is: it was cut off at its beginning")
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
