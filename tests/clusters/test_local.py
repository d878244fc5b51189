"""clusters/local: up, a job, down, for real."""

from __future__ import annotations

import re
import socket
import stat
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_cluster import Local
from processes import kill_all, living
from tinyrun import write_settings

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.timeout(900)]


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
    assert refused(f"http://127.0.0.1:{local.port}/api/jobs/") == 401
    assert "distill.temprature" in local.submit(settings, "distill.temprature=2", code=1)
    assert "token is invalid or incorrect" in local.shell(f"{source}; RAY_AUTH_TOKEN={'0' * 64} ray job list", code=1)

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
