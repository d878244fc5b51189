"""Peak growth of this process's resident memory. Linux only."""

from __future__ import annotations

import ctypes
from pathlib import Path


class Growth:
    """Measures the peak of this process's memory inside the block, above that before it: `mib`, set at its end."""

    mib: float

    def __enter__(self) -> Growth:
        ctypes.CDLL(None).malloc_trim(0)  # so that memory freed before counts if the block takes it again
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the high-water mark
        self._before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.mib = (_status("VmHWM") - self._before) / 2**10


def _status(name: str) -> int:
    """A value of /proc/self/status, KiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
