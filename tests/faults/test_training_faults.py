"""What a run survives: SIGKILL of the driver, of a worker, of a teacher; Ctrl-C. Each ends with the same weights."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import commands
import psutil
import pytest
import torch
from safetensors.torch import load_file
from tinyrun import config, write_settings

from lingu_ray.runtime import trainer
from lingu_ray.runtime.checkpoint import checkpoints
from lingu_ray.runtime.records import read_records

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

TRAIN = {"steps": 40, "checkpoint_every": 8, "validate_every": 0, "sample_every": 0}


def start(data, output, name):
    """Start `python -m lingu_ray.train`, with a Ray of its own."""
    path = write_settings(output / f"{name}.yaml", data, output, name=name, train=TRAIN)
    return commands.start_warm("lingu_ray.train", path)


def train(data, output, name):
    """The same run in this process, on the tests' Ray."""
    trainer.run(config(data, output, name=name, train=TRAIN))


def reached(output, name, step):
    """Whether the run has done so many steps."""
    records = read_records(output / name / "metrics.jsonl")
    return bool(records) and records[-1]["step"] >= step


def weights(output, name):
    """The exported weights."""
    return load_file(output / name / "export" / "model.safetensors")


def assert_same_run(output, name):
    """Same weights to the bit as the undisturbed run, and every step stands once in the metrics."""
    ours, theirs = weights(output, name), weights(output, "undisturbed")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    steps = [record["step"] for record in read_records(output / name / "metrics.jsonl") if "loss" in record]
    assert steps == list(range(1, TRAIN["steps"] + 1))


def kill_worker(title):
    """Kill the process of the tests' Ray that has the title."""
    processes = psutil.Process().children(recursive=True)
    (found,) = (process for process in processes if title in " ".join(process.cmdline()))
    found.kill()


@pytest.fixture(scope="module")
def output(ray_cluster, data, tmp_path_factory):
    """A folder with the undisturbed run in it."""
    folder = tmp_path_factory.mktemp("runs")
    train(data, folder, "undisturbed")
    return folder


def test_interrupted_then_killed_then_finished(data, output):
    """Ctrl-C finishes the step, writes a checkpoint, says how to resume, and exits with 130; so does SIGTERM to the
    whole group. SIGKILL of all processes loses the steps since the newest checkpoint. The same settings resume, and
    end with the same weights."""
    folder = output / "stopped"
    with start(data, output, "stopped") as command:
        command.wait_for(lambda: reached(output, "stopped", 4))
        command.signal_group(signal.SIGINT)
        assert "run the same command again to resume" in command.finish(130)
    saved = checkpoints(folder / "checkpoints")[-1][1].step
    assert saved >= 4 and saved == read_records(folder / "metrics.jsonl")[-1]["step"]

    with start(data, output, "stopped") as command:
        command.wait_for(lambda: reached(output, "stopped", saved + 2))
        command.signal_group(signal.SIGTERM)  # Ray's own processes have groups of their own
        assert "run the same command again to resume" in command.finish(130)
    assert checkpoints(folder / "checkpoints")[-1][1].step >= saved + 2

    with start(data, output, "stopped") as command:
        command.wait_for(lambda: reached(output, "stopped", saved + 12))
        command.kill()
    newest = checkpoints(folder / "checkpoints")[-1][1].step
    assert saved < newest < TRAIN["steps"] and newest % 8 == 0
    assert not (folder / "export").exists()
    half = folder / "checkpoints" / ".step-00000016.elsewhere-1-00.tmp"  # left by a worker that is killed as it saves
    half.mkdir()
    train(data, output, "stopped")
    assert_same_run(output, "stopped")
    assert not list((folder / "checkpoints").glob(".*"))


def test_interrupted_before_the_first_step(data, output):
    """Ctrl-C while Ray starts or the corpus is built: one line and exit code 130, no traceback; the name stays free."""
    with start(data, output, "early") as command:
        command.wait_for(lambda: "starting Ray" in command.printed)
        time.sleep(1.5)
        command.signal_group(signal.SIGINT)
        printed = command.finish(130)
    assert printed.strip().splitlines()[-1] == "stopped; what was finished is kept"
    assert "Traceback" not in printed


def test_parts_killed(data, output):
    """A killed teacher is replaced and asked again, and nothing of the step is lost; a killed worker is replaced and
    resumes from the newest checkpoint."""

    def disturb():
        for step, title in ((6, "TeacherActor"), (18, "RayTrainWorker")):
            deadline = time.monotonic() + 240
            while not reached(output, "parts", step):
                assert time.monotonic() < deadline, f"no step {step}"
                time.sleep(0.01)
            kill_worker(title)

    with ThreadPoolExecutor(1) as pool:
        disturbed = pool.submit(disturb)
        train(data, output, "parts")
        disturbed.result()
    assert_same_run(output, "parts")
