"""clusters/local: up, a job, down, for real."""

import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from commands import Command
from tinyrun import write_settings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """The first of three ports, as far as one can see; they are below those of outgoing connections."""
    for port in range(20000 + os.getpid() % 5000, 32000, 3):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise AssertionError("no port is free")


class Local:
    """The scripts, with files and ports of this test."""

    def __init__(self, scratch: Path):
        self.state = scratch / "local"
        self.port = free_port()
        self.env = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "LINGU_RAY_STATE": str(scratch),
            "LINGU_RAY_PORT": str(self.port),
        }

    def shell(self, line: str, code: int = 0, **env: str) -> str:
        """Run a line of bash in the project's folder; returns what it prints."""
        with Command(["bash", "-c", line], cwd=ROOT, env={**self.env, **env}) as command:
            return command.finish(code, seconds=200)

    def processes(self) -> list[psutil.Process]:
        """All processes that name this cluster's folder, its workers' by their environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("RAY_AUTH_TOKEN_PATH") == str(self.state / "token"):
                    found.append(process)
            except psutil.Error:
                continue
        return [process for process in found if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def local() -> Iterator[Local]:
    with tempfile.TemporaryDirectory(prefix="lr-", ignore_cleanup_errors=True) as folder:
        cluster = Local(Path(folder))
        yield cluster
        for process in cluster.processes():
            process.kill()


SUBMIT = "ray job submit --working-dir . --runtime-env clusters/runtime-env.yaml -- python -m lingu_ray.train"


def test_up_job_down(local: Local, data: Path, tmp_path: Path):
    """One command starts Ray with a token of its own, jobs give their exit code, whoever lacks the token is refused,
    and one command lets a job save, ends everything and leaves what else runs here alone."""
    settings = write_settings(tmp_path / "run.yaml", data, tmp_path / "runs", train={"steps": 2, "samples": 0})
    t = time.time()
    local.shell(f"clusters/local/up.sh --num-cpus=2 --temp-dir={local.state.parent}")
    print("up", time.time() - t)
    assert (local.state / "token").stat().st_mode & 0o077 == 0
    assert "up already" in local.shell("clusters/local/up.sh", code=1)
    for process in local.processes():
        for c in process.net_connections(kind="inet"):
            if c.status == "LISTEN":
                print(c.laddr, " ".join(process.cmdline())[:80])

    source = f"source {local.state}/env"
    t = time.time()
    assert "step 2/2" in local.shell(f"{source}; {SUBMIT} {settings}")
    print("job", time.time() - t)
    t = time.time()
    assert "distill.temprature" in local.shell(f"{source}; {SUBMIT} {settings} distill.temprature=2", code=1)
    refused = local.shell(f"{source}; ray job list", code=1, RAY_AUTH_TOKEN="0" * 64)
    print(refused[-300:])
    print("bad", time.time() - t)
    t = time.time()

    local.shell(
        f"{source}; {SUBMIT.replace('--working', '--no-wait --working')} {settings} name=long train.steps=100000"
    )
    metrics = tmp_path / "runs/long/metrics.jsonl"
    for _ in range(600):
        if metrics.exists():
            break
        time.sleep(0.1)
    print(local.shell("clusters/local/down.sh"))
    print("down", time.time() - t)
    assert list((tmp_path / "runs/long/checkpoints").iterdir())
    print(local.processes())
    assert not local.processes()
    assert sorted(path.name for path in local.state.iterdir()) == ["log"]
