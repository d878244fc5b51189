"""How much memory the processes of this machine may use: what it has, within the control group's limit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/")


def host_memory(root: Path = _ROOT) -> int:
    """Bytes. `root`: of the file system in which Linux describes the machine."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    """Limits in bytes of the control group and of those above it, in either version of control groups."""
    own, groups = _own_groups(root), root / "sys/fs/cgroup"
    for controller, top, file in (
        ("", groups, "memory.max"),
        ("memory", groups / "memory", "memory.limit_in_bytes"),
    ):
        folder = top / own.get(controller, "/").strip("/")
        for above in (folder, *folder.parents):
            with suppress(OSError, ValueError):  # there is no such file, or no limit: max
                yield int((above / file).read_text())


def _own_groups(root: Path) -> dict[str, str]:
    """This process's control group by controller; of version 2, which has one group for all, by an empty name."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return {}
    return {name: path for _, names, path in (line.split(":", 2) for line in lines) for name in names.split(",")}
