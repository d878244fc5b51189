"""Processes of clusters that tests start: wherever they were started, they carry a variable in their environment."""

from __future__ import annotations

from contextlib import suppress

import psutil


def living(variable: str, value: str) -> list[psutil.Process]:
    """The living processes with that value of a variable, and their descendants, who may have hidden theirs."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(variable) == value:
                found |= {one.pid: one for one in (process, *process.children(recursive=True))}
    return [one for one in found.values() if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def title_of(process: psutil.Process) -> str:
    """What a process is called, with its arguments; nothing of one that has just ended."""
    with suppress(psutil.NoSuchProcess):  # a zombie, too
        return " ".join(process.cmdline())
    return ""


def kill_all(variable: str, value: str) -> None:
    """Kill them, and those that they start meanwhile."""
    while processes := living(variable, value):
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, timeout=5)
