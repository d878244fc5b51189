"""clusters/local: up, a job, down, for real."""

from __future__ import annotations

import os
import re
import socket
import stat
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from commands import Command
from processes import kill_all, living
from tinyrun import write_settings

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
SUBMIT = "ray job submit --working-dir . --runtime-env clusters/runtime-env.yaml"


def free_port() -> int:
    """The first of three ports that nobody listens on, below those of outgoing connections."""
    for first in range(20000 + os.getpid() % 3000 * 3, 32000, 3):
        with socket.socket() as one, socket.socket() as two, socket.socket() as three:
            if all(probe.connect_ex(("127.0.0.1", first + i)) for i, probe in enumerate((one, two, three))):
                return first
    raise AssertionError("no port is free")


class Local:
    """The scripts, with files and ports of this test."""

    def __init__(self, scratch: Path):
        self.state = scratch / "local"
        self.port = free_port()
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

    def listeners(self) -> set[tuple[str, bool]]:
        """The programs that listen, by their names in the guide, and whether on more than this machine."""
        found = set()
        for process in living(*self.mark):
            with suppress(psutil.Error):
                name = program(" ".join(process.cmdline()))
                sockets = [one.laddr.ip for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
                found |= {(name, address not in ("127.0.0.1", "::1")) for address in sockets}
        return found


PROGRAMS = {
    r"/gcs_server ": "GCS",
    r"/raylet ": "raylet",
    r"Agent": "agent",
    r"client\.server": "Ray client server",
    r"dashboard": "dashboard",
    r"monitor\.py": "metrics",
    r"ray::|default_worker|lingu_ray\.train": "workers and drivers",
}


def program(command: str) -> str:
    """What the guide calls the program of a command line."""
    return next((name for pattern, name in PROGRAMS.items() if re.search(pattern, command)), command)


def said_to_listen() -> dict[str, str]:
    """The guide's table: program, and where it listens."""
    table = (ROOT / "clusters/README.md").read_text("utf-8").split("## What listens")[1]
    return dict(re.findall(r"^\| (\w[\w ]*?)(?: \(on the head\)| of [^|]*)? \| ([^|]+) \|", table, re.MULTILINE))


def refused(url: str) -> int:
    """The status of an HTTP request without a token that is refused."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url, timeout=30)
    return caught.value.code


@pytest.fixture
def local() -> Iterator[Local]:
    with tempfile.TemporaryDirectory(prefix="lr-", ignore_cleanup_errors=True) as folder:
        cluster = Local(Path(folder))
        yield cluster
        kill_all(*cluster.mark)


def test_up_jobs_down(local: Local, data: Path, tmp_path: Path):
    """One command starts Ray with a token that is its owner's, jobs give their exit code, whoever has another token is
    refused, and one command lets a job save and ends everything, its files included."""
    settings = write_settings(tmp_path / "run.yaml", data, tmp_path / "runs", train={"steps": 2, "samples": 0})
    with socket.create_server(("127.0.0.1", local.port + 1)):
        assert f"has port {local.port + 1}" in local.shell("clusters/local/up.sh", code=1)
    local.shell(f"clusters/local/up.sh --num-cpus=2 --temp-dir={local.state.parent}")
    assert stat.S_IMODE((local.state / "token").stat().st_mode) == 0o600
    assert "up already" in local.shell("clusters/local/up.sh", code=1)

    source = f"source {local.state}/env"
    assert "step 2/2" in local.submit(settings)
    assert ("raylet", True) in (listeners := local.listeners())
    assert {name for name, _ in listeners} <= set(said_to_listen())
    assert all("every address" in said_to_listen()[name] for name, beyond in listeners if beyond)
    assert refused(f"http://127.0.0.1:{local.port}/api/jobs/") == 401
    assert "distill.temprature" in local.submit(settings, "distill.temprature=2", code=1)
    assert "token is invalid or incorrect" in local.shell(f"{source}; ray job list", code=1, RAY_AUTH_TOKEN="0" * 64)

    local.submit(settings, "name=long", "train.steps=100000", options="--no-wait")
    deadline = time.monotonic() + 200
    while not (tmp_path / "runs/long/metrics.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert re.search(r"^stopping \S+", local.shell("clusters/local/down.sh"), re.MULTILINE)
    assert list((tmp_path / "runs/long/checkpoints").iterdir())
    assert living(*local.mark) == []
    assert [path.name for path in local.state.iterdir()] == ["log"]
    assert "No cluster" in local.shell("clusters/local/down.sh")
