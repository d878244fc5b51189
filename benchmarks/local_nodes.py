"""A Ray cluster of several nodes on this machine, for benchmarks, with counters for its processes. Linux only."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import ray

from benchmarks.ports import free_port, free_ports
from benchmarks.processes import kill, titled

RAY = Path(sys.executable).with_name("ray")
_RAYLET = Path(ray.__file__).resolve().parent / "core/src/ray/raylet/raylet"
STARTED = "Ray runtime started"
STORE_MB = 200  # of each node's object store
START_S = 120


class LocalNodes:
    """A context manager: a head without CPUs, and `count` nodes of one CPU each, with their own token."""

    def __init__(self, count: int) -> None:
        with ExitStack() as end:
            self.folder = Path(end.enter_context(tempfile.TemporaryDirectory(prefix="lr-", ignore_cleanup_errors=True)))
            token = self.folder / "token"
            token.touch(0o600)
            token.write_text(secrets.token_hex(32))
            self.env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
            self.processes: list[psutil.Process] = []
            port, dashboard = free_ports(2)
            self.address = f"127.0.0.1:{port}"
            head = ["--head", "--num-cpus=0", f"--port={port}", f"--dashboard-port={dashboard}"]
            end.enter_context(self._node([*head, f"--temp-dir={self.folder}", "--dashboard-host=127.0.0.1"]))
            for number in range(count):
                address = f"--node-ip-address=127.0.0.{number + 2}"
                end.enter_context(self._node([f"--address={self.address}", address, "--num-cpus=1"]))
            self._end = end.pop_all()

    def __enter__(self) -> LocalNodes:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()

    @contextmanager
    def _node(self, options: list[str]) -> Iterator[None]:
        common = ["--block", "--disable-usage-stats", f"--object-store-memory={STORE_MB * 10**6}"]
        common += [f"--dashboard-agent-listen-port={free_port()}"]
        log = self.folder / f"node-{len(self.processes)}.log"
        with log.open("wb") as out:
            started = subprocess.Popen(
                [RAY, "start", *common, *options],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | self.env,
                start_new_session=True,
            )
        process = psutil.Process(started.pid)
        self.processes.append(process)
        try:
            end = time.monotonic() + START_S
            while STARTED not in log.read_text(encoding="utf-8"):
                if started.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"ray start: {log.read_text(encoding='utf-8')}")
                time.sleep(0.1)
            yield
        finally:
            kill(process)
            started.wait()

    def fullest_store(self) -> int:
        """Peak bytes of the fullest object store, by the shared memory of its raylet, which never frees pages."""
        held = [
            Path(f"/proc/{raylet.pid}/status").read_text(encoding="utf-8")
            for raylet in titled(self.processes, str(_RAYLET))
        ]
        return max(int(re.findall(r"RssShmem:\s*(\d+) kB", status)[0]) for status in held) * 1024


def sent_among(processes: list[psutil.Process]) -> int:
    """Bytes that processes have sent each other so far over TCP connections that are still open."""
    pids = {process.pid for process in processes}
    printed = subprocess.run(["ss", "-tinpHO"], capture_output=True, text=True, check=True).stdout
    ends: dict[tuple[str, str], int] = {}
    for line in printed.splitlines():
        owner, sent, words = re.search(r"pid=(\d+)", line), re.search(r"bytes_sent:(\d+)", line), line.split()
        if owner and int(owner[1]) in pids and sent:
            ends[words[3], words[4]] = int(sent[1])
    return sum(sent for (here, there), sent in ends.items() if (there, here) in ends)


def processor_seconds(processes: list[psutil.Process]) -> float:
    """CPU seconds of processes so far."""
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))
