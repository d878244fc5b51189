"""One way to open the files of a source, compressed or not, by the suffixes of their names."""

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
RECORD_BYTES = 1 << 30  # the most that a line or a file of an archive may have: a few KB, compressed, can be any number
_READ = 1 << 18  # compressed bytes at once


class _Streams(RawIOBase):
    """The content of a file of one or several compressed streams, perhaps with zeros as padding.

    Python's own `bz2` and `lzma` files end in silence where a further stream is damaged at its beginning.
    """

    def __init__(self, file: str | IO[bytes], decompressor: Callable[[], Any]) -> None:
        self.file = open(file, "rb") if isinstance(file, str) else file  # noqa: SIM115  (closed by `close`)
        self.decompressor = decompressor
        self.stream = decompressor()

    def readable(self) -> bool:
        """True, which `BufferedReader` requires."""
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
    """Open a file for reading, decompressed according to its suffix. Reading raises where a file was cut off.

    Raises:
        EOFError: a compressed file is empty: even of no content, compression makes some bytes.
    """
    if not is_compressed(path):
        return cast(BufferedIOBase, storage.open_file(path))
    with storage.open_file(path, buffering=0) as file:
        if not file.read(1):
            raise EOFError("it is empty, which no compressed file is: it was cut off at its beginning")
    return DECOMPRESSORS[Path(path).suffix.lower()](storage.open_file(path) if storage.is_remote(path) else path)


def full_suffix(path: str | Path) -> str:
    """The suffix of a file's name with that of its compression, in lower case: `.jsonl`, `.jsonl.gz`."""
    name = Path(path).name.lower()
    if name.endswith(".tgz"):
        return ".tar.gz"
    suffixes = Path(name).suffixes
    return "".join(suffixes[-2:] if is_compressed(path) else suffixes[-1:])


def inner_suffix(path: str | Path) -> str:
    """`full_suffix` without the suffix of the compression."""
    return Path("_" + full_suffix(path)).with_suffix("").suffix if is_compressed(path) else full_suffix(path)


def is_compressed(path: str | Path) -> bool:
    """Whether a file is compressed, so that it can be read from its beginning only."""
    return Path(path).suffix.lower() in DECOMPRESSORS


def read_block(file: BufferedIOBase) -> bytes:
    """The next whole lines, about `LINES_BYTES` of them; empty at the end. Raises ValueError for an endless line."""
    block = file.read(LINES_BYTES)
    rest = file.readline(RECORD_BYTES) if block else b""
    if len(rest) == RECORD_BYTES:
        raise ValueError(f"a line of it has more than {RECORD_BYTES:,} bytes, which no record has")
    return block + rest
