"""What a run survives: SIGKILL of the driver, of a worker, of a teacher; Ctrl-C. Each ends with the same weights."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tinyrun import write_settings

from lingu_ray.runtime.checkpoint import checkpoints
from lingu_ray.runtime.records import read_records

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

TRAIN = {"steps": 40, "checkpoint_every": 8, "validate_every": 0, "sample_every": 0}


def start(data, output, name):
    """Start `python -m lingu_ray.train` in a session of its own."""
    path = write_settings(output / f"{name}.yaml", data, output, name=name, train=TRAIN)
    command = [sys.executable, "-m", "lingu_ray.train", str(path)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_for_step(process, output, name, step):
    """Wait until the run has done `step` steps."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        records = read_records(output / name / "metrics.jsonl")
        if records and records[-1]["step"] >= step:
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    raise AssertionError(f"no step {step} within two minutes")


def finish(process):
    """Wait for the end; returns what was printed."""
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return printed


def weights(output, name):
    """The exported weights."""
    return load_file(output / name / "export" / "model.safetensors")


def assert_same_run(output, name):
    """Same weights to the bit as the undisturbed run, and every step stands once in the metrics."""
    ours, theirs = weights(output, name), weights(output, "undisturbed")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    steps = [record["step"] for record in read_records(output / name / "metrics.jsonl") if "loss" in record]
    assert steps == list(range(1, TRAIN["steps"] + 1))


def child(process, word):
    """The descendant of `process`, Ray's included, whose title contains `word`."""
    for candidate in psutil.process_iter(["cmdline", "ppid"]):
        title = " ".join(candidate.info["cmdline"] or [])
        if word in title and process.pid in {parent.pid for parent in candidate.parents()}:
            return candidate
    raise AssertionError(f"no process {word}")


@pytest.fixture(scope="module")
def output(tmp_path_factory, data):
    """A folder with the undisturbed run in it."""
    folder = tmp_path_factory.mktemp("runs")
    finish(start(data, folder, "undisturbed"))
    return folder


def test_interrupted_then_killed_then_finished(data, output):
    """Ctrl-C finishes the step, writes a checkpoint, says how to resume, and exits with 130; so does SIGTERM to the
    whole group. SIGKILL of all processes loses the steps since the newest checkpoint. The same command resumes, and
    ends with the same weights."""
    folder = output / "stopped"
    process = start(data, output, "stopped")
    wait_for_step(process, output, "stopped", 4)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 130 and "run the same command again to resume" in printed, printed
    saved = checkpoints(folder / "checkpoints")[-1][1].step
    assert saved >= 4 and saved == read_records(folder / "metrics.jsonl")[-1]["step"]

    process = start(data, output, "stopped")
    wait_for_step(process, output, "stopped", saved + 2)
    os.killpg(process.pid, signal.SIGTERM)  # as a batch system does; Ray's own processes have groups of their own
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 130 and "run the same command again to resume" in printed, printed
    assert checkpoints(folder / "checkpoints")[-1][1].step >= saved + 2

    process = start(data, output, "stopped")
    wait_for_step(process, output, "stopped", saved + 12)
    family = [process, *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        if member is process or member.is_running():
            member.kill()
    process.communicate()
    newest = checkpoints(folder / "checkpoints")[-1][1].step
    assert saved < newest < TRAIN["steps"] and newest % 8 == 0
    assert not (folder / "export").exists()
    half = (
        folder / "checkpoints" / ".step-00000016.elsewhere-1-00.tmp"
    )  # what a worker leaves that is killed as it saves
    half.mkdir()
    finish(start(data, output, "stopped"))
    assert_same_run(output, "stopped")
    assert not list((folder / "checkpoints").glob(".*"))


def test_interrupted_before_the_first_step(data, output):
    """Ctrl-C while Ray starts or the corpus is built: one line and exit code 130, no traceback; the name stays free."""
    process = start(data, output, "early")
    for line in process.stdout:
        if "starting Ray" in line:
            break
    time.sleep(1.5)
    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 130 and printed.strip().splitlines()[-1] == "stopped; what was finished is kept"
    assert "Traceback" not in printed


def test_parts_killed(data, output):
    """A killed teacher is replaced and asked again, and nothing of the step is lost; a killed worker is replaced and
    resumes from the newest checkpoint."""
    process = start(data, output, "parts")
    for step, title in ((6, "TeacherActor"), (18, "RayTrainWorker")):
        wait_for_step(process, output, "parts", step)
        child(process, title).kill()
    finish(process)
    assert_same_run(output, "parts")
