"""Folders of a node's cache in which results are written that go to a location, and the location of each."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lingu_ray.storage.locations import SCHEMES, join
from lingu_ray.storage.node_cache import cache_folder
from lingu_ray.storage.objects import delete


def working_folder(place: Path | str, of: str = "driver") -> Path:
    """The folder on this node in which `of` writes results that go to a place: itself, if it is local."""
    if isinstance(place, Path):
        return place
    scheme, _, path = place.partition("://")
    return Path(os.path.abspath(cache_folder()), of, f"@{scheme}", path)


def origin(path: Path) -> Path | str:
    """The location that a path in a working folder stands for; any other path as it is."""
    for at, part in enumerate(path.parts):
        if part.startswith("@") and part[1:] in SCHEMES:
            return join(f"{part[1:]}://{'/'.join(path.parts[at + 1 :])}")
    return path


def remove(path: Path) -> None:
    """Delete a local file or folder and, where it is in a working folder, what it stands for; none is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    if isinstance(location := origin(path), str):
        delete(location)
