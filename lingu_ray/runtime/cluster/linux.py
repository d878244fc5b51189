"""What Linux says of a machine in files of its own, and where it says what a process may use of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def told(path: Path) -> str:
    """The text of such a file, without white space around it; empty where there is none, or it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def group_folders(controller: str, root: Path) -> Iterator[Path]:
    """Folders with the limits of this process's control groups and those above them, innermost first.

    Of version 2, then of a `controller` of version 1.

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
