"""The control groups that limit this process on Linux: its own and those above it, of either version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lingu_ray.runtime.cluster.linux import told


def folders(controller: str, root: Path) -> Iterator[Path]:
    """Folders with the limits of the process's groups, innermost first: of version 2, then of a version 1 `controller`.

    `root`: of the file system in which Linux describes the machine. A folder may lack the file of a limit: none is set.
    """
    own, groups = _own_groups(root), root / "sys/fs/cgroup"
    for name, top in (("", groups), (controller, groups / controller)):
        folder = top / own.get(name, "/").strip("/")
        yield from (above for above in (folder, *folder.parents) if above.is_relative_to(top))


def _own_groups(root: Path) -> dict[str, str]:
    """This process's group by controller; of version 2, which has one group for all, by an empty name."""
    lines = told(root / "proc/self/cgroup").splitlines()
    return {name: path for _, names, path in (line.split(":", 2) for line in lines) for name in names.split(",")}
