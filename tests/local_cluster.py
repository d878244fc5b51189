"""The scripts of clusters/local, with files and ports of a test, and what of the cluster listens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from commands import Command
from processes import living, title_of

from benchmarks.ports import free_ports

ROOT = Path(__file__).parents[1]
SUBMIT = "ray job submit --working-dir . --runtime-env clusters/runtime-env.yaml"
PROGRAMS = {
    r"/gcs_server ": "GCS",
    r"/raylet ": "raylet",
    r"Agent": "agent",
    r"client\.server": "Ray client server",
    r"dashboard": "dashboard",
    r"monitor\.py": "metrics",
    r"ray::|default_worker|lingu_ray\.train|ray\.init": "workers and drivers",
}
"""By what stands in a command line: the program's name in docs/operations.md."""


ADDRESSES = {
    **dict.fromkeys(("0.0.0.0", "*", "[::]"), "every address"),
    **dict.fromkeys(("127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"), "127.0.0.1"),
}
"""What `ss` prints, in the words of docs/operations.md; any other is the node's own."""


class Local:
    """The scripts, with files and ports of this test."""

    def __init__(self, scratch: Path):
        self.state = scratch / "local"
        self.port = free_ports(3)[0]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.env = {"PATH": path, "LINGU_RAY_STATE": str(scratch), "LINGU_RAY_PORT": str(self.port)}
        self.mark = ("RAY_AUTH_TOKEN_PATH", str(self.state / "token"))

    def shell(self, line: str, code: int = 0, **env: str) -> str:
        """Run a line of bash in the project's folder; returns what it prints."""
        with Command(["bash", "-c", line], cwd=ROOT, env={**self.env, **env}) as command:
            return command.finish(code)

    def submit(self, *words: object, code: int = 0, options: str = "") -> str:
        """Submit a run and wait for its end; returns what is printed."""
        arguments = " ".join(map(str, words))
        return self.shell(f"source {self.state}/env; {SUBMIT} {options} -- python -m lingu_ray.train {arguments}", code)

    def address(self) -> str:
        """Where a driver of this cluster finds it; Ray's `auto` may find another one of the machine."""
        commands = (title_of(process) for process in living(*self.mark))
        return next(found[1] for command in commands if (found := re.search(r"--gcs-address=(\S+)", command)))

    def listeners(self) -> set[tuple[str, str, int]]:
        """The programs that listen, on which kind of address, and port, as `ss` says it."""
        programs = {}
        for process in living(*self.mark):
            programs[process.pid] = program(title_of(process))
        printed = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout
        found = set()
        for line in printed.splitlines():
            address, _, port = line.split()[3].rpartition(":")
            owners = [programs[int(pid)] for pid in re.findall(r"pid=(\d+)", line) if int(pid) in programs]
            found |= {(owner, ADDRESSES.get(address, "the node's address"), int(port)) for owner in owners[:1]}
        return found


def program(command: str) -> str:
    """What the documents call the program of a command line."""
    return next((name for pattern, name in PROGRAMS.items() if re.search(pattern, command)), command)


def said_to_listen() -> dict[str, tuple[str, str]]:
    """The table of docs/operations.md: by program, where it listens, and whether it asks for the token."""
    table = (ROOT / "docs/operations.md").read_text("utf-8").split("## What listens where")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+?)(?: \(on the head\))? \| ([^|]+) \| [^|]+ \| ([^|]+) \|$", table, re.MULTILINE)
    return {name: (where, token) for name, where, token in rows[1:]}
