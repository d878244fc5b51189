"""What identifies a corpus: its settings, its files (path, size, time of change) and the student's processor.

Images that records name by path are not looked at: after changing them in place, touch the file of records.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lingu_ray.config import CorpusConfig, SourceConfig
from lingu_ray.corpus.pieces import Piece

VERSION = 1  # of what a build writes; a new one makes every corpus be built anew
NOT_OF_THE_ROW = {"ce_weight"}  # settings of a source that training reads, and the corpus does not
NOT_OF_THE_ORDER = {"sources", "cache_dir"}
PROCESSOR_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
NOT_THE_PROCESSOR = {"config.json", "generation_config.json", "model.safetensors.index.json"}


def fingerprint(
    corpus: CorpusConfig, sources: tuple[SourceConfig, ...], pieces: list[list[Piece]], processor_dir: Path
) -> str:
    """Sixteen hexadecimal digits; equal for equal settings, files and processor."""
    content: dict[str, Any] = {
        "version": VERSION,
        "corpus": corpus.model_dump(mode="json", exclude=NOT_OF_THE_ORDER),
        "sources": [source.model_dump(mode="json", exclude=NOT_OF_THE_ROW) for source in sources],
        "files": [_files(of_source) for of_source in pieces],
        "processor": _processor(processor_dir),
    }
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def _files(pieces: list[Piece]) -> list[tuple[str, int, int]]:
    paths = sorted({path for piece in pieces for path in piece.files or (piece.path,)})
    stats = [(path, os.stat(path)) for path in paths]
    return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def _processor(folder: Path) -> dict[str, str]:
    found = {path for pattern in PROCESSOR_FILES for path in folder.glob(pattern) if path.name not in NOT_THE_PROCESSOR}
    return {path.name: hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() for path in sorted(found)}
