"""What identifies files, models and settings: their content, wherever it lies and whenever it was written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BLOCK = 1 << 16
BLOCKS = 1024
"""Blocks read of a file: all of one up to 64 MiB; of a larger one as many, with the first and the last."""


def file_identity(path: str | Path, blocks: int = BLOCKS) -> str:
    """Identity of a file by size and content: thirty-two hexadecimal digits. Reads at most `blocks` (2 or more) of it.

    Raises:
        OSError: it cannot be read.
    """
    size = os.path.getsize(path)
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    last = max(0, size - BLOCK)
    step = max(BLOCK, -(-last // (blocks - 1)))
    with open(path, "rb") as file:
        for start in (*range(0, last, step), last):
            file.seek(start)
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


def bytes_identity(content: bytes) -> str:
    """Identity of bytes: thirty-two hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def model_identity(path: str, revision: str | None = None) -> str:
    """Identity of a model: of the content of a local folder's files, or of a file; of a hub model, id and revision.

    The model card does not count: it is written after measuring.
    """
    place = Path(path)
    if not place.exists():
        return f"{path}@{revision or 'main'}"
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    return combined(f"{f.name} {file_identity(f)}" for f in files if f.is_file() and f.suffix != ".md")


def combined(parts: Iterable[str]) -> str:
    """One identity of several texts, in order: thirty-two hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part.encode() + b"\n")
    return digest.hexdigest()


def fingerprint(value: Any, digits: int = 32) -> str:
    """So many hexadecimal digits, equal for equal values; the order of a mapping's keys does not count.

    `value` is anything that JSON can say; other objects count by their text.
    """
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=digits // 2).hexdigest()
