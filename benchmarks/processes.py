"""Finds child processes by their titles, and kills process trees."""

from __future__ import annotations

from contextlib import suppress

import psutil


def titled(processes: list[psutil.Process], title: str) -> list[psutil.Process]:
    """The descendants of the processes whose title begins with `title`."""
    found = []
    for process in [one for first in processes for one in first.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess, IndexError):
            if process.cmdline()[0].startswith(title):
                found.append(process)
    return found


def kill(process: psutil.Process) -> None:
    """Send SIGKILL to a process and all of its descendants."""
    with suppress(psutil.NoSuchProcess):
        for one in (*process.children(recursive=True), process):
            with suppress(psutil.NoSuchProcess):
                one.kill()
