"""What a run on a cluster survives: stopped jobs, killed drivers, dead nodes. Its weights are the same to the bit."""

import json
import os
import signal
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import commands
import psutil
import pytest
import torch
from nodes import OBJECT_STORE_MB, Nodes
from ray.job_submission import JobSubmissionClient
from safetensors.torch import load_file
from tinyrun import write_settings

from lingu_ray.runtime.checkpoints.checkpoint import checkpoints
from lingu_ray.runtime.run_folder.records import read_records

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(900)]

STEPS = 120
TRAIN = {"steps": STEPS, "rows_per_step": 12, "checkpoint_every": 40, "validate_every": 0, "sample_every": 0}
FILL = f"""
import sys, time
import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

ray.init(sys.argv[1])

@ray.remote(num_cpus=0)
class Hog:
    def fill(self):
        self.kept = [ray.put(np.zeros(10**7, dtype=np.uint8)) for _ in range({OBJECT_STORE_MB} // 10 + 2)]

alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
hogs = [Hog.options(scheduling_strategy=On(node, soft=False)).remote() for node in alive]
ray.get([hog.fill.remote() for hog in hogs])
print("full", flush=True)
time.sleep(1000)
"""


@pytest.fixture(scope="module")
def cluster(warm_workers):
    """A head, and two nodes with room for a worker each."""
    with Nodes() as nodes:
        nodes.workers = [nodes.add(), nodes.add()]
        yield nodes


def write(data, output, name, **ray):
    """Settings of a run of two workers."""
    ray = {"num_workers": 2, "cpus_per_worker": 1, **ray}
    return write_settings(output / f"{name}.yaml", data, output, name=name, train=TRAIN, ray=ray)


def start(cluster, path):
    """Start a run on the cluster."""
    return commands.start_warm("lingu_ray.train", path, env={"RAY_ADDRESS": cluster.address})


@pytest.fixture(scope="module")
def output(cluster, data, tmp_path_factory):
    """A folder with the undisturbed run in it."""
    folder = tmp_path_factory.mktemp("runs")
    with start(cluster, write(data, folder, "undisturbed")) as command:
        command.finish()
    return folder


def newest_step(folder):
    """The last step that a run has finished."""
    records = read_records(folder / "metrics.jsonl")
    return records[-1]["step"] if records else 0


def assert_same_run(output, name):
    """Same weights to the bit as the undisturbed run, and every step stands once in the metrics."""
    ours, theirs = (load_file(output / run / "export" / "model.safetensors") for run in (name, "undisturbed"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    ours, theirs = (
        [(r["step"], r["loss"]) for r in read_records(output / run / "metrics.jsonl") if "loss" in r]
        for run in (name, "undisturbed")
    )
    assert ours == theirs and [step for step, _ in ours] == list(range(1, STEPS + 1))


@contextmanager
def held(cluster):
    """A step that does not end before this does: its teacher is suspended."""
    teacher = cluster.worker("TeacherActor")
    teacher.suspend()
    yield
    with suppress(psutil.NoSuchProcess):
        teacher.resume()


def until(condition, seconds=180):
    """Wait until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.05)


def test_a_job_is_stopped_and_submitted_again(cluster, data, output):
    """`ray job stop` in the middle of a step of ten seconds: Ray waits as long as it was told to, the step is finished
    and saved, and the job is STOPPED. While it runs, a second driver is refused. SIGKILL to the next job's driver: the
    job after it takes the run over, and loses a node, which is replaced. All the while the object stores are full."""
    path, folder, client = write(data, output, "job", max_failures=1), output / "job", JobSubmissionClient(cluster.jobs)

    def submit(**env):
        command = f"{sys.executable} -m lingu_ray.train {path}"
        return client.submit_job(entrypoint=command, runtime_env={"env_vars": env})

    def ended(job, status):
        until(lambda: client.get_job_status(job).is_terminal())
        assert client.get_job_status(job) == status, client.get_job_logs(job)

    with commands.Command([sys.executable, "-c", FILL, cluster.address]) as hog:
        hog.wait_for(lambda: "full" in hog.printed)
        job = submit(RAY_JOB_STOP_WAIT_TIME_S="60")
        until(lambda: newest_step(folder) >= 5)
        with held(cluster):
            time.sleep(1)
            before = newest_step(folder)
            with start(cluster, path) as second:
                printed = second.finish(1)
            assert "another driver writes it" in printed and f"`ray job stop {job}`" in printed
            client.stop_job(job)
            time.sleep(10)  # Ray's own wait is 3 s
        ended(job, "STOPPED")
        assert checkpoints(folder / "checkpoints")[-1][1].step == before + 1 == newest_step(folder)
        assert "`ray job stop` kills" not in client.get_job_logs(job)

        job = submit()
        until(lambda: newest_step(folder) >= before + 10)
        os.kill(json.loads((folder / "driver.json").read_text())["process"], signal.SIGKILL)
        ended(job, "FAILED")
        assert "warning: `ray job stop` kills this job 3 s after" in client.get_job_logs(job)

        job = submit()
        until(lambda: newest_step(folder) >= before + 20)
        with held(cluster):
            dying, cluster.workers = cluster.workers[0], [*cluster.workers[1:], cluster.add()]
            dying.kill()
        ended(job, "SUCCEEDED")
    assert any(Path(cluster.folder).rglob("ray_spilled_objects*/*"))
    assert_same_run(output, "job")
