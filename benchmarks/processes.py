"""Processes and all that they started: found by their titles, and killed."""

from __future__ import annotations

from contextlib import suppress

import psutil


def titled(processes: list[psutil.Process], title: str) -> list[psutil.Process]:
    """What the processes started whose title begins so."""
    found = []
    for process in [one for first in processes for one in first.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess, IndexError):
            if process.cmdline()[0].startswith(title):
                found.append(process)
    return found


def kill(process: psutil.Process) -> None:
    """SIGKILL to a process and all that it started."""
    with suppress(psutil.NoSuchProcess):
        for one in (*process.children(recursive=True), process):
            with suppress(psutil.NoSuchProcess):
                one.kill()
