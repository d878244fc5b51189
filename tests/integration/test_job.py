"""`ray job submit` on a running cluster: the same command, as a job."""

import os
import sys
import tempfile
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from commands import Command
from tinyrun import write_pair_and_data, write_settings

from benchmarks.ports import free_port

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster(warm_workers):
    """A head node with dashboard, as `ray start --head` gives it; yields the address for jobs."""
    dashboard = free_port()
    environment = {"PATH": f"{BIN}:{os.environ['PATH']}"}
    command = ["ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2", f"--port={free_port()}",
               "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}",
               f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats"]  # fmt: skip
    with (
        tempfile.TemporaryDirectory(prefix="lr-", ignore_cleanup_errors=True) as folder,
        Command([*map(str, command), f"--temp-dir={folder}"], env=environment, warm=True) as head,
    ):
        head.wait_for(lambda: takes_jobs(dashboard), seconds=90)
        yield f"http://127.0.0.1:{dashboard}"


def takes_jobs(port):
    """Whether the head at that port takes jobs."""
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api/jobs/", timeout=2)
        return True
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def submit(address, *arguments, code=0):
    """`ray job submit --working-dir . -- python -m lingu_ray.train …` from the repository; returns what it printed."""
    argv = [BIN / "ray", "job", "submit", "--address", address, "--working-dir", ".", "--", "python", "-m"]
    with Command([*map(str, argv), "lingu_ray.train", *arguments], cwd=ROOT) as command:
        command.process.wait(400)
        if "ServerDisconnectedError" not in command.printed:
            return command.finish(code)
    return submit(address, *arguments, code=code)  # Ray's head asked its agent on a connection that was just closed


def test_job_trains_and_a_bad_one_fails_with_its_reason(cluster, tmp_path):
    """A submitted run trains on the cluster's workers and exports; output into the copy of the working directory that
    Ray removes fails the job with the one line, as every bad setting does."""
    write_pair_and_data(tmp_path)
    settings = write_settings(tmp_path / "run.yaml", tmp_path, tmp_path / "runs", train={"steps": 2, "samples": 0})
    with ThreadPoolExecutor(1) as pool:  # Ray starts a job's driver in seconds
        bad = pool.submit(submit, cluster, str(settings), "output_dir=runs", code=1)
        printed = submit(cluster, str(settings))
    assert (tmp_path / "runs" / "tiny" / "export" / "model.safetensors").exists()
    assert "step 2/2" in printed
    assert "give an absolute output_dir=" in bad.result()
