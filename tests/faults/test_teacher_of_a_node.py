"""One teacher for all workers of a node gives the numbers of a teacher for each, also where it or its owner dies."""

import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from processes import title_of
from safetensors.torch import load_file
from tinyrun import actors_started, config

from lingu_ray.runtime import trainer
from lingu_ray.runtime.run_folder.records import read_records

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(600)]

TRAIN = {"steps": 40, "checkpoint_every": 8, "validate_every": 0, "sample_every": 0}


def losses(folder):
    """Step and loss of each record of the run's folder."""
    return [(record["step"], record["loss"]) for record in read_records(folder / "metrics.jsonl") if "loss" in record]


def kill_at(folder, step, title):
    """Kill the first process of the tests' Ray with that title, in the middle of the run's step after that one."""
    deadline = time.monotonic() + 240
    while not (done := losses(folder)) or done[-1][0] < step:
        assert time.monotonic() < deadline, f"no step {step}"
        time.sleep(0.01)
    processes = psutil.Process().children(recursive=True)
    process = min((one for one in processes if title in title_of(one)), key=lambda one: one.pid)
    process.suspend()
    time.sleep(0.5)  # by now the other one waits for it
    process.kill()


def test_one_teacher_for_two_workers(ray_cluster, data, tmp_path):
    """Two workers with a teacher each; then with one, which is killed in the middle of a request, as later the worker
    that had started it: the first is replaced and asked again, after the second both workers start again. Weights and
    losses are the same, to the bit."""
    runs = {
        placement: config(
            data, tmp_path, name=placement, train=TRAIN, ray={"num_workers": 2},
            teacher={"path": str(data / "teacher"), "placement": placement},
        )
        for placement in ("actor", "node")
    }  # fmt: skip
    folder, before = tmp_path / "node", actors_started("TeacherActor")
    trainer.run(runs["actor"])
    assert actors_started("TeacherActor") == before + 2

    def disturb():
        kill_at(folder, 6, "TeacherActor")
        kill_at(folder, 18, "RayTrainWorker")

    with ThreadPoolExecutor(1) as pool:
        disturbed = pool.submit(disturb)
        trainer.run(runs["node"])
        disturbed.result()
    assert actors_started("TeacherActor") == before + 4  # one for each start of the workers
    assert losses(folder) == losses(tmp_path / "actor")
    theirs, ours = (load_file(tmp_path / name / "export" / "model.safetensors") for name in ("actor", "node"))
    assert all(ours[name].equal(theirs[name]) for name in theirs)
