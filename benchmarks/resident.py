"""Resident memory of this process. Linux only."""

from __future__ import annotations

import ctypes
from pathlib import Path


class Growth:
    """What this process takes at most inside the block, on top of what it has before: `mib`, once the block is left."""

    mib: float

    def __enter__(self) -> Growth:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before counts again where the block takes it
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the high-water mark is what is resident now
        self._before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.mib = (_status("VmHWM") - self._before) / 2**10


def _status(name: str) -> int:
    """KiB of this process, by the name that the kernel gives them."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
