"""What a run survives on one machine: killed parts, Ctrl-C, a full disk, files cut off, a step that is not finite.

Each ends with the same weights and metrics as the undisturbed run. In all of them one step's loss overflows, and is
skipped.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import commands
import psutil
import pytest
import torch
from processes import title_of
from safetensors.torch import load_file
from tinyrun import config, write_settings

from lingu_ray.errors import UserError
from lingu_ray.runtime import trainer
from lingu_ray.runtime.checkpoints.checkpoint import checkpoints
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.records import read_records

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1500)]

TRAIN = {"steps": 40, "checkpoint_every": 8, "validate_every": 0, "sample_every": 0}
BAD_STEP = 21
"""The one step at whose progress the weight of KD is too large for float32."""
DISTILL = {"w_kd": [[0, 1], [(BAD_STEP - 1) / 39, 1e300], [BAD_STEP / 39, 1]]}


def start(data, output, name):
    """Start `python -m lingu_ray.train`, with a Ray of its own; its checkpoints are written in the background."""
    train = {**TRAIN, "checkpoint": "sharded"}
    path = write_settings(output / f"{name}.yaml", data, output, name=name, train=train, distill=DISTILL)
    return commands.start_warm("lingu_ray.train", path)


def train(data, output, name, **more):
    """The same run in this process, on the tests' Ray."""
    trainer.run(config(data, output, name=name, train=TRAIN, distill=DISTILL, **more))


def reached(output, name, step):
    """Whether the run has done so many steps."""
    records = read_records(output / name / "metrics.jsonl")
    return bool(records) and records[-1]["step"] >= step


def wait_for_step(output, name, step):
    """Wait until a run of this process has done so many steps."""
    deadline = time.monotonic() + 240
    while not reached(output, name, step):
        assert time.monotonic() < deadline, f"no step {step}"
        time.sleep(0.01)


def outcome(folder):
    """The exported weights of a run's folder, and what is known of each step, but how long it took."""
    known = ("step", "loss", "ce", "kd", "grad_norm", "bad_steps", "validation_ce")
    records = [tuple(record.get(key) for key in known) for record in read_records(folder / "metrics.jsonl")]
    return load_file(folder / "export" / "model.safetensors"), records


def assert_same_run(output, folder):
    """Same weights to the bit as the undisturbed run, and the same metrics: every step stands once in them."""
    (ours, records), (theirs, expected) = outcome(folder), outcome(output / "undisturbed")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert records == expected


def ray_process(title):
    """The process of the tests' Ray that has the title."""
    processes = psutil.Process().children(recursive=True)
    (found,) = (process for process in processes if title in title_of(process))
    return found


@contextmanager
def small_disk(folder, megabytes):
    """A file system of so many megabytes in the folder."""
    folder.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    made = subprocess.run(argv, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no file system of its own can be mounted here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def output(ray_cluster, data, tmp_path_factory):
    """A folder with the undisturbed run in it."""
    folder = tmp_path_factory.mktemp("runs")
    train(data, folder, "undisturbed")
    return folder


def test_a_step_that_is_not_finite_is_skipped(output):
    """It stands in the metrics without a loss, is counted from there on, and changes no weight: the next one has the
    loss of a run that goes on."""
    records = read_records(output / "undisturbed" / "metrics.jsonl")
    steps = [record for record in records if "loss" in record]
    assert [r["step"] for r in steps if r["loss"] is None] == [BAD_STEP]
    assert [r["bad_steps"] for r in steps] == [int(r["step"] >= BAD_STEP) for r in steps]


def test_interrupted_then_killed_then_finished(data, output, caplog):
    """Ctrl-C finishes the step, writes a checkpoint, says how to resume, and exits with 130; so does SIGTERM to the
    whole group. SIGKILL of all processes loses the steps since the newest checkpoint. A shard of the corpus that was
    cut off is named. The same settings resume, from the checkpoint before where the newest is cut in half, and end with
    the same weights."""
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
    (corpus,) = (output / ".corpora").iterdir()
    shard = next(corpus.glob("shard-*"))
    os.truncate(shard, shard.stat().st_size // 2)
    with pytest.raises(UserError, match=rf"{shard.name} is damaged; delete the corpus, and it is"):
        train(data, output, "stopped")
    shutil.rmtree(corpus)
    cut = folder / "checkpoints" / f"step-{newest:08d}" / "optimizer.safetensors"
    os.truncate(cut, cut.stat().st_size // 2)
    train(data, output, "stopped")
    assert f"step-{newest:08d}: a file is missing, cut off or changed" in caplog.text
    assert_same_run(output, folder)
    assert not list((folder / "checkpoints").glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_before_the_first_step(data, output, number):
    """Ctrl-C or SIGTERM while Ray starts or the corpus is built: one line and exit code 130, no traceback; the name
    stays free."""
    with start(data, output, "early") as command:
        command.wait_for(lambda: "starting Ray" in command.printed)
        time.sleep(1.5)
        command.signal_group(number)
        printed = command.finish(130)
    assert printed.strip().splitlines()[-1] == "stopped; what was finished is kept"
    assert "Traceback" not in printed


def test_parts_killed(data, output):
    """A teacher that is killed in the middle of a request is replaced and asked again, and nothing of the step is lost.
    Without the actor by which workers learn that a node is taken away, the step is saved, and they are started again,
    which is no failure; a killed worker is one, resumes from the newest checkpoint, and the driver says so."""

    def disturb():
        for step, title in ((6, "TeacherActor"), (12, "SynchronizationActor"), (26, "RayTrainWorker")):
            wait_for_step(output, "parts", step)
            process = ray_process(title)
            process.suspend()
            time.sleep(0.5)  # by now a request waits for it
            process.kill()

    with ThreadPoolExecutor(1) as pool:
        disturbed = pool.submit(disturb)
        train(data, output, "parts")
        disturbed.result()
    assert_same_run(output, output / "parts")
    said = (output / "parts" / "logs" / "driver.jsonl").read_text()
    assert re.search(r"worker 0 died; started again from step \d+ \(1 of ray.max_failures=1\)", said)
    teacher = (output / "parts" / "logs" / "teacher-0.jsonl").read_text().splitlines()
    assert len({json.loads(line)["message"] for line in teacher}) >= 3  # the first, its successor, the second worker's


@pytest.mark.parametrize(("title", "replaced"), [("RayTrainWorker", "student"), ("TeacherActor", "teacher")])
def test_a_model_that_was_replaced_is_not_trained_on(ray_cluster, data, tmp_path, title, replaced):
    """A worker, or a teacher, that dies and is started again finds another model where its own was: the run ends, names
    the model, and goes on once that is put back."""
    models = shutil.copytree(data, tmp_path / "data")
    weights = models / replaced / "model.safetensors"
    original = weights.read_bytes()

    def replace():
        wait_for_step(tmp_path, "replaced", 10)
        process = ray_process(title)
        process.suspend()
        weights.write_bytes(original[:-4] + bytes(4))
        process.kill()

    with ThreadPoolExecutor(1) as pool:
        replacing = pool.submit(replace)
        with pytest.raises(UserError, match=rf"another model than {replaced}\.path=.* is now: its files have changed"):
            train(models, tmp_path, "replaced")
        replacing.result()
    weights.write_bytes(original)
    train(models, tmp_path, "replaced")
    assert RunFolder(tmp_path / "replaced").exported_step == TRAIN["steps"]


def test_a_full_disk(data, output, tmp_path):
    """Where a checkpoint does not fit, the run stops before it writes, and says how much is missing; once there is room
    the same settings resume from the checkpoint before."""
    elsewhere = {
        "corpus": {"cache_dir": str(output / ".corpora")},
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    }
    with small_disk(tmp_path / "disk", megabytes=48) as disk:
        ballast = disk / "ballast"

        def fill():
            wait_for_step(disk, "full", 9)
            with ballast.open("wb") as file:
                file.write(bytes(shutil.disk_usage(disk).free - 2**18))

        with ThreadPoolExecutor(1) as pool:
            filled = pool.submit(fill)
            with pytest.raises(
                UserError, match=r"no disk space for the checkpoint of step 16: \d+ MB needed, 0 MB free"
            ):
                train(data, disk, "full", **elsewhere)
            filled.result()
        assert [state.step for _, state in checkpoints(disk / "full" / "checkpoints")] == [8]
        ballast.unlink()
        train(data, disk, "full", **elsewhere)
        assert_same_run(output, disk / "full")
