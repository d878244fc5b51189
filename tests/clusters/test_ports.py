"""What of a cluster listens, on which addresses, and who gets no answer: the table of docs/operations.md."""

from __future__ import annotations

import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import pytest
from commands import Command
from local_cluster import Local, said_to_listen
from processes import kill_all

from benchmarks.ports import free_port

pytestmark = [
    pytest.mark.long,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("ss") is None, reason="ss (iproute2) is not installed"),
]

DRIVER = """
import time
import ray
ray.init()
@ray.remote
class Worker:
    def ready(self):
        return True
worker = Worker.remote()
assert ray.get(worker.ready.remote())
print("ready", flush=True)
time.sleep(1000)
"""
NOT_HERE = {"gradients between workers"}  # of a run of several workers


@pytest.fixture
def local() -> Iterator[Local]:
    """A cluster as `clusters/local/up.sh` starts it."""
    with tempfile.TemporaryDirectory(prefix="lr-", ignore_cleanup_errors=True) as folder:
        cluster = Local(Path(folder))
        # Ray's own two are the same in each cluster, and the second of a machine goes without.
        cluster.env |= {"AUTOSCALER_METRIC_PORT": str(free_port()), "DASHBOARD_METRIC_PORT": str(free_port())}
        cluster.shell(f"clusters/local/up.sh --num-cpus=1 --temp-dir={folder}")
        yield cluster
        kill_all(*cluster.mark)


def answer(url: str) -> int | None:
    """The status of an HTTP request without a token; None where the port speaks something else."""
    try:
        return urllib.request.urlopen(url, timeout=5).status
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, HTTPException):
        return None


def test_the_table_is_what_listens(local: Local):
    """With a driver and a worker: each program that listens is in the table and the other way round, none on more
    addresses than it says; what asks for the token refuses another one, or none; and numbers alone are open."""
    driver = f"source {local.state}/env; exec python -c '{DRIVER}'"
    with Command(["bash", "-c", driver], env={**local.env, "RAY_ADDRESS": local.address()}) as command:
        command.wait_for(lambda: "ready" in command.printed)
        said = said_to_listen()
        command.wait_for(lambda: {name for name, _, _ in local.listeners()} >= said.keys() - NOT_HERE, seconds=60)
        found = local.listeners()
        numbers = {name for name, _, port in found if answer(f"http://127.0.0.1:{port}/metrics") == 200}
    assert {name for name, _, _ in found} == said.keys() - NOT_HERE
    for name, address, port in found:
        assert address in said[name][0] or "every address" in said[name][0], (name, address, port)
    assert numbers and all("no" in said[name][1] for name in numbers)
    assert answer(f"http://127.0.0.1:{local.port}/api/jobs/") == 401
    wrong = local.shell(f"source {local.state}/env; RAY_AUTH_TOKEN={'0' * 64} ray job list", code=1)
    assert "token is invalid or incorrect" in wrong
