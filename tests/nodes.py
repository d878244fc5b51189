"""A Ray cluster of several nodes on this machine, as real processes: each `ray start --block`, ended by signals alone.

They and their workers are forks of the server of the fixture `warm_workers`, or, `cold`, started as users start them:
Ray then ends a node's workers with it, as on a machine of its own.
"""

from __future__ import annotations

import re
import sys
import tempfile
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

import psutil
from commands import Command
from processes import title_of

from benchmarks.ports import free_port

OBJECT_STORE_MB = 100
"""Of each node."""
DRAIN_S = 10
"""How long a node drains after SIGTERM."""


class Nodes:
    """A head without CPUs, for drivers, with a dashboard that takes jobs; `add` starts nodes that hold workers."""

    def __init__(self, cold: bool = False) -> None:
        self._end = ExitStack()
        self._cold = cold
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

    def worker(self, title: str, node: Command | None = None) -> psutil.Process:
        """A living process of the cluster's, or of one node, of those that have the title."""
        found = [pid for one in ([node] if node else self.started) for pid in self._processes(one)]
        for pid in found:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if title in title_of(process):
                    return process
        raise AssertionError(f"no process {title} among {found}")

    def worker_groups(self) -> list[list[Command]]:
        """The groups of workers that Ray Train has started in the newest run: the nodes of their ranks, in order."""
        logs = list(Path(self.folder).glob("session_*/logs/train/ray-train-app-controller*.log"))
        text = max(logs, key=lambda log: log.stat().st_mtime).read_text() if logs else ""
        groups = [
            re.findall(r"ip=127\.0\.0\.(\d+), pid=", line) for line in text.splitlines() if "world_rank=0" in line
        ]
        return [[self.started[int(last) - 1] for last in group] for group in groups]

    def _processes(self, node: Command) -> list[int]:
        if not self._cold:
            return list(node.began)
        with suppress(psutil.NoSuchProcess):
            return [child.pid for child in psutil.Process(node.process.pid).children(recursive=True)]
        return []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()

    def _start(self, *options: str) -> Command:
        words = ["start", "--block", "--disable-usage-stats", f"--dashboard-agent-listen-port={free_port()}"]
        words += [f"--object-store-memory={OBJECT_STORE_MB * 10**6}", *options]
        argv = [*([sys.executable, "-m"] if self._cold else []), "ray.scripts.scripts", *words]
        env = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_S)}
        self.started.append(Command(argv, env=env, warm=not self._cold))
        return self._end.enter_context(self.started[-1])

    def _takes_jobs(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.jobs}/api/jobs/", timeout=2)
            return True
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False
