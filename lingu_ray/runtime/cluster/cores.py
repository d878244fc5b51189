"""How many cores this process may compute on: physical ones, within its affinity and its control group's limit.

Two hyperthreads of a core share its arithmetic units, and threads beyond a container's quota are held back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lingu_ray.runtime.cluster.linux import group_folders, told

_ROOT = Path("/")


def cores(root: Path = _ROOT) -> int:
    """Physical cores, at least 1. `root`: of the file system in which Linux describes the machine."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    physical = {_siblings(root, cpu) for cpu in usable}
    return max(1, min([len(physical), *(int(quota) for quota in _quotas(root))]))


def _siblings(root: Path, cpu: int) -> str:
    """The hyperthreads of the core that a CPU is one of; the CPU alone where that is not told."""
    path = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    return told(path) or str(cpu)


def _quotas(root: Path) -> Iterator[float]:
    """Limits in cores of the control group and of those above it."""
    for folder in group_folders("cpu", root):
        version_1 = " ".join(told(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        for limit in (told(folder / "cpu.max"), version_1):
            with suppress(ValueError):  # none is set, or there is no such file
                quota, period = map(int, limit.split())
                if quota > 0:
                    yield quota / period
