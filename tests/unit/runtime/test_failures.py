"""What the driver says of workers that were started again."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError
from safetensors import SafetensorError
from tinyrun import config

from lingu_ray.errors import Interrupted, UserError, full_disk
from lingu_ray.runtime.cluster.memory import FOR_TRAINING, explained
from lingu_ray.runtime.failures import NAME, OnFailure, Restarts
from lingu_ray.runtime.run import Run, _readable
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.job_stop import StopWait
from lingu_ray.runtime.run_folder.lease import Lease
from lingu_ray.runtime.run_folder.patient_read import PatientRead
from lingu_ray.runtime.run_folder.records import JsonLines, LoggedSteps
from lingu_ray.runtime.trainer import _fit

DIED = WorkerHealthCheckFailedError("…", ActorDiedError())  # as the controller has them
TAKEN_AWAY = WorkerHealthCheckFailedError("…", RayActorError(preempted=True))
FULL = WorkerHealthCheckFailedError(
    "…",
    OutOfMemoryError(
        "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2) was 22.19GB "
        "used / 23.54GB limit (0.94)\nRefer to the documentation"
    ),
)
ENDED = RuntimeError("Traceback …\nRuntimeError: out of memory")


@pytest.mark.parametrize(
    ("failures", "said"),
    [
        ([{0: DIED}], ["worker 0 died; started again from step 40 (1 of ray.max_failures=2)"]),
        (
            [{1: DIED, 0: DIED}, {0: ENDED}, {0: DIED}],  # the third ends the run
            [
                "workers 0, 1 died; started again from step 40 (1 of ray.max_failures=2)",
                "worker 0 failed (RuntimeError: out of memory); started again from step 40 (2 of ray.max_failures=2)",
            ],
        ),
        (
            [{0: FULL}],
            [
                "worker 0 failed (ended by Ray, since its node ran out of memory: 22.19GB used / 23.54GB limit); "
                "started again from step 40 (1 of ray.max_failures=2)"
            ],
        ),
        (
            [{0: TAKEN_AWAY}, {0: TAKEN_AWAY, 1: ENDED}],
            ["a node was taken away; workers are started again from step 40 where there is room"],
        ),
    ],
)
def test_what_is_said(tmp_path: Path, failures: list[dict[int, Exception]], said: list[str]) -> None:
    """Who died, or failed with what, and how many more are allowed; nodes that are taken away are not counted; what an
    earlier command has noted is not said again."""
    note = OnFailure(tmp_path / ".ray")
    note.after_exception(None, {0: DIED})
    restarts = Restarts(tmp_path / ".ray", 2)
    assert restarts.new_messages(lambda: 0) == []
    for failure in failures:
        note.after_exception(None, failure)
    assert restarts.new_messages(lambda: 40) == said
    assert restarts.new_messages(lambda: 40) == []
    assert (tmp_path / ".ray" / NAME).exists()


def test_a_failure_is_told_when_the_checkpoints_can_be_read(tmp_path: Path) -> None:
    """Where storage does not say from which step, it is told at the next call, and counted once."""

    def unreadable() -> int:
        raise OSError("Stale file handle")

    restarts = Restarts(tmp_path / ".ray", 2)
    OnFailure(tmp_path / ".ray").after_exception(None, {0: DIED})
    with pytest.raises(OSError):
        restarts.new_messages(unreadable)
    assert restarts.new_messages(lambda: 40) == ["worker 0 died; started again from step 40 (1 of ray.max_failures=2)"]


def test_a_run_that_has_not_started_can_be_stopped(tmp_path: Path) -> None:
    """Ctrl-C while its MLflow store is opened, which takes seconds: it is told at once, and the workers find STOP."""
    run = Run(config(tmp_path, tmp_path), Lease(tmp_path, "me"))
    run.progress.say("finishing the step")


def test_an_interruption_while_the_model_is_exported_is_none_of_the_past(tmp_path: Path) -> None:
    """The run is complete, but what comes after it, a control or hours of measuring, is not begun."""
    heard = list[str]()

    def start(position: int, neighbors: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    run: Any = SimpleNamespace(start=start, training=False, follow=list, end=lambda: heard.append("finished"))
    run.folder, run.progress = RunFolder(tmp_path), SimpleNamespace(say=heard.append)
    with pytest.raises(Interrupted, match="training complete: run the same command again"):
        _fit([run])
    assert heard[1:] == ["finished"] and run.folder.stop.exists()


@pytest.mark.parametrize("error", [ControllerError(FULL.health_check_failure), WorkerGroupError("…", {0: FULL})])
def test_a_full_node_ends_a_run_in_one_line(error: Exception) -> None:
    """Of the controller or of a worker: how much was used, what helps, and that the same command resumes."""
    found = _readable(error)
    assert isinstance(found, UserError)
    said = str(found)
    assert said.startswith("a worker was ended by Ray, since its node ran out of memory (22.19GB used / 23.54GB limit)")
    assert "train.tokens_per_micro_batch" in said and "the same command resumes" in said and "\n" not in said


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/runs/mine/metrics.jsonl"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("Traceback …\nOSError: [Errno 122] Disk quota exceeded: '/runs/mine/logs'"),
    ],
)
def test_a_worker_whose_disk_is_full_is_not_started_again(error: Exception, tmp_path: Path) -> None:
    """There will be no room the next time either; what ends the run says so, whatever wraps it."""
    with pytest.raises(UserError, match=r"^no disk space: .*(left|exceeded).*\. Free some, and run the same") as ended:
        OnFailure(tmp_path).after_exception(None, {0: error})
    assert "Traceback" not in str(ended.value)
    found = full_disk(WorkerGroupError("…", {0: error}))
    assert str(found) == str(ended.value)


@pytest.mark.parametrize(("neighbors", "told"), [(0, False), (1, True)])
def test_a_run_that_ends_beside_others_is_told_at_once(neighbors: int, told: bool, tmp_path: Path) -> None:
    """Its error ends the command when the others have ended, which may be hours later; alone it does so at once."""

    def fit() -> None:
        raise WorkerGroupError("…", {0: UserError("step 5: its loss is not finite")})

    run, said = Run.__new__(Run), []
    run.folder, run.error, run.neighbors = RunFolder(tmp_path), None, neighbors
    run.progress = SimpleNamespace(say=said.append)
    run._train(SimpleNamespace(fit=fit))
    assert isinstance(run.error, WorkerGroupError)
    assert said == (["warning: stopped: step 5: its loss is not finite"] if told else [])


def test_a_teacher_on_a_full_node_is_told_too() -> None:
    """Whoever asks another process names it."""
    with (
        pytest.raises(UserError, match=r"^the teacher was ended by Ray, .* lower train"),
        explained("the teacher", FOR_TRAINING),
    ):
        raise FULL.health_check_failure


def test_steps_that_are_trained_again_are_shown_and_given_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """After a crash, and after a worker that was started again, the line goes on with the first step after the
    checkpoint; callers get the first record of a step alone, and it is said what MLflow keeps."""
    run = Run(config(tmp_path / "data", tmp_path / "runs"), Lease(tmp_path / "driver.json", "this test"))
    shown: list[int] = []
    monkeypatch.setattr(run.progress, "show", lambda record: shown.append(record["step"]))
    lines, clock = JsonLines(run.folder.metrics), itertools.count(1.0)
    run.folder.root.mkdir(parents=True)

    def train(*steps: int) -> list[int]:
        """The steps of the records that the driver is given while these are trained."""
        lines.drop_after(steps[0] - 1)
        for step in steps:
            lines.append({"step": step, "loss": 1.0, "time": next(clock)})
        return [record["step"] for record in run.follow()]

    train(1, 2, 3)
    run._read_from(LoggedSteps(2, 0))
    run._wait_for("the first step")
    run.thread, run.stop_wait = threading.Thread(), StopWait()
    run.restarts = PatientRead("failures", list, pytest.fail)
    assert run.follow() == []
    assert train(1, 2, 3, 4) == [3, 4] and train(3, 4, 5) == [5]
    assert shown == [1, 2, 3, 4, 3, 4, 5]
    assert "steps 1 to 3, of which MLflow keeps the values that it has" in capsys.readouterr().err


def test_what_a_killed_worker_waited_for_is_not_told_of_its_successor(tmp_path: Path):
    """Its log ends with the wait; the next command, or the next start of workers, tells what they wait for alone."""
    run = Run(config(tmp_path / "data", tmp_path / "runs"), Lease(tmp_path / "driver.json", "this test"))
    log = JsonLines(run.folder.logs / "rank-0.jsonl")
    log.path.parent.mkdir(parents=True)

    def wait(since: str) -> None:
        line = {"rank": 0, "node": "a", "message": f"waiting since {since}", "level": "WARNING"}
        log.append({**line, "logger": "lingu_ray.waiting"})

    wait("10:00")
    run._wait_for("the first step")
    assert run._where_to_look().startswith("workers start, compute or hang")
    wait("11:00")
    assert run._where_to_look().startswith("worker 0 on a is waiting since 11:00")
    run._wait_for("the next step")
    assert run._where_to_look().startswith("worker 0 on a is waiting since 11:00")
