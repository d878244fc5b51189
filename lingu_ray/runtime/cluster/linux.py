"""What Linux says of a machine in files of its own."""

from __future__ import annotations

from pathlib import Path


def told(path: Path) -> str:
    """The text of such a file, without white space around it; empty where there is none, or it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
