"""`ray job submit` on a running cluster: the same command, as a job."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from tinyrun import write_pair_and_data, write_settings

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def cluster():
    """A head node with dashboard, as `ray start --head` gives it; yields the address for jobs."""
    dashboard = free_port()
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    command = [BIN / "ray", "start", "--head", "--block", "--num-cpus=2", f"--port={free_port()}",
               "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}",
               f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats"]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="lr-", ignore_cleanup_errors=True) as folder:
        head = subprocess.Popen([*command, f"--temp-dir={folder}"], env=environment, start_new_session=True,
                                stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)  # fmt: skip
        try:
            wait_for_jobs(dashboard, head)
            yield f"http://127.0.0.1:{dashboard}"
        finally:
            try:
                os.killpg(head.pid, 15)
                head.wait(20)
            except (subprocess.TimeoutExpired, ProcessLookupError):
                head.kill()


def wait_for_jobs(port, head):
    """Wait until the head takes jobs."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert head.poll() is None, "the head node ended"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/jobs/", timeout=2)
            return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.5)
    raise AssertionError("the head node takes no jobs")


def submit(address, *arguments):
    """`ray job submit --working-dir . -- python -m lingu_ray.train …` from the repository."""
    command = [BIN / "ray", "job", "submit", "--address", address, "--working-dir", ".", "--", "python", "-m"]
    return subprocess.run(
        [*command, "lingu_ray.train", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240
    )


def test_job_trains_and_a_bad_one_fails_with_its_reason(cluster, tmp_path):
    """A submitted run trains on the cluster's workers and exports; bad settings, and output into
    the copy of the working directory that Ray removes, fail the job with the one line."""
    write_pair_and_data(tmp_path)
    settings = write_settings(tmp_path / "run.yaml", tmp_path, tmp_path / "runs", train={"steps": 2, "samples": 0})
    done = submit(cluster, str(settings))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs" / "tiny" / "export" / "model.safetensors").exists()
    assert "step 2/2" in done.stdout + done.stderr
    homeless = submit(cluster, str(settings), "output_dir=runs")
    assert homeless.returncode == 1 and "give an absolute output_dir=" in homeless.stdout + homeless.stderr
    failed = submit(cluster, str(settings), "name=other", "distill.temprature=2")
    assert failed.returncode == 1 and "distill.temperature" in failed.stdout + failed.stderr
