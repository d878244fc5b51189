"""A Ray cluster of several nodes on this machine, as real processes: each `ray start --block`, ended by signals alone.

Their workers are forks of the server of the fixture `warm_workers`.
"""

from __future__ import annotations

import tempfile
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

import psutil
from commands import Command
from ports import free_port

OBJECT_STORE_MB = 100
"""Of each node."""


class Nodes:
    """A head without CPUs, for drivers, with a dashboard that takes jobs; `add` starts nodes that hold workers."""

    def __init__(self) -> None:
        self._end = ExitStack()
        self.folder = self._end.enter_context(tempfile.TemporaryDirectory(prefix="lr-", ignore_cleanup_errors=True))
        self.started: list[Command] = []
        self.dashboard, gcs = free_port(), free_port()
        self.address = f"127.0.0.1:{gcs}"
        head = self._start(
            "--head", "--num-cpus=0", f"--port={gcs}", f"--temp-dir={self.folder}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard}", f"--ray-client-server-port={free_port()}",
        )  # fmt: skip
        head.wait_for(self._takes_jobs)

    @property
    def jobs(self) -> str:
        """The address for `ray job`."""
        return f"http://127.0.0.1:{self.dashboard}"

    def add(self) -> Command:
        """Start a node with one CPU, and wait for it: two that start at once choose the same socket on one machine."""
        address = f"127.0.0.{1 + len(self.started)}"  # of its own: a driver joins by the node that has its address
        node = self._start(f"--address={self.address}", f"--node-ip-address={address}", "--num-cpus=1")
        node.wait_for(lambda: "Ray runtime started" in node.printed)
        return node

    def worker(self, title: str) -> psutil.Process:
        """A living process of the cluster's, of those that have the title."""
        forks = [int(pid) for node in self.started for pid in Path(node.forks.name).read_text().split()]
        for pid in forks:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if title in " ".join(process.cmdline()):
                    return process
        raise AssertionError(f"no process {title} among {forks}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()

    def _start(self, *options: str) -> Command:
        words = ["start", "--block", "--disable-usage-stats", f"--dashboard-agent-listen-port={free_port()}"]
        words += [f"--object-store-memory={OBJECT_STORE_MB * 10**6}", *options]
        self.started.append(Command(["ray.scripts.scripts", *words], warm=True))
        return self._end.enter_context(self.started[-1])

    def _takes_jobs(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.jobs}/api/jobs/", timeout=2)
            return True
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False
