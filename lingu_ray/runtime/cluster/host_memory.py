"""How much memory the processes of this machine may use: what it has, within the control group's limit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lingu_ray.runtime.cluster.linux import group_folders, told

_ROOT = Path("/")


def host_memory(root: Path = _ROOT) -> int:
    """Bytes. `root`: of the file system in which Linux describes the machine."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    """Limits in bytes of the control group and of those above it."""
    for folder in group_folders("memory", root):
        for file in ("memory.max", "memory.limit_in_bytes"):
            with suppress(ValueError):  # there is no such file, or no limit: max
                yield int(told(folder / file))
