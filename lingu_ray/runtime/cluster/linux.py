"""What Linux says of a machine in files of its own: processor, and cores and memory that this process may use."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/")


def told(path: Path) -> str:
    """The text of such a file, without white space around it; empty where there is none, or it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def cpu_name() -> str:
    """The processor's model."""
    lines = told(_ROOT / "proc/cpuinfo").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def cores(root: Path = _ROOT) -> int:
    """Physical cores that this process may compute on, at least 1: of its affinity, within its control group's limit.

    Two hyperthreads of a core share its arithmetic units, and threads beyond a container's quota are held back.
    `root`: of the file system in which Linux describes the machine.
    """
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    physical = {_siblings(root, cpu) for cpu in usable}
    return max(1, min([len(physical), *(int(quota) for quota in _core_limits(root))]))


def _siblings(root: Path, cpu: int) -> str:
    """The hyperthreads of the core that a CPU is one of; the CPU alone where that is not told."""
    path = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    return told(path) or str(cpu)


def _core_limits(root: Path) -> Iterator[float]:
    """Limits in cores of the control group and of those above it."""
    for folder in _group_folders("cpu", root):
        version_1 = " ".join(told(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        for limit in (told(folder / "cpu.max"), version_1):
            with suppress(ValueError):  # none is set, or there is no such file
                quota, period = map(int, limit.split())
                if quota > 0:
                    yield quota / period


def host_memory(root: Path = _ROOT) -> int:
    """Bytes that the processes of this machine may use: what it has, within the control group's limit."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_memory_limits(root)])


def _memory_limits(root: Path) -> Iterator[int]:
    """Limits in bytes of the control group and of those above it."""
    for folder in _group_folders("memory", root):
        for file in ("memory.max", "memory.limit_in_bytes"):
            with suppress(ValueError):  # there is no such file, or no limit: max
                yield int(told(folder / file))


def _group_folders(controller: str, root: Path) -> Iterator[Path]:
    """Folders with the limits of this process's control groups and those above them, innermost first.

    Of version 2, then of a `controller` of version 1. A folder may lack the file of a limit: none is set.
    """
    own, groups = _own_groups(root), root / "sys/fs/cgroup"
    for name, top in (("", groups), (controller, groups / controller)):
        folder = top / own.get(name, "/").strip("/")
        yield from (above for above in (folder, *folder.parents) if above.is_relative_to(top))


def _own_groups(root: Path) -> dict[str, str]:
    """This process's group by controller; of version 2, which has one group for all, by an empty name."""
    lines = told(root / "proc/self/cgroup").splitlines()
    return {name: path for _, names, path in (line.split(":", 2) for line in lines) for name in names.split(",")}
