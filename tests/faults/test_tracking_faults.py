"""A real MLflow server is killed and started again: a run's metrics arrive later, in one run, and none is lost."""

import json
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Command
from tinyrun import config

from benchmarks.ports import free_port
from lingu_ray.config import Config
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.records import JsonLines
from lingu_ray.runtime.tracking import delivery
from lingu_ray.runtime.tracking.tracker import Tracker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Server:
    """An MLflow server on one port and one database, which can be killed and started again."""

    def __init__(self, store: Path):
        self.port = free_port()
        self.environment = {
            "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{store}",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": str(store.parent / "files"),
        }

    def start(self) -> None:
        """Start it, and wait until it answers."""
        argv = [sys.executable, "-m", "flask", "--app", "mlflow.server:app", "run", "--port", str(self.port)]
        self.command = Command(argv, env=self.environment)  # `mlflow server` imports all of it twice
        self.command.wait_for(self.answers, seconds=400)

    def answers(self) -> bool:
        """Whether its port is open."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """SIGKILL."""
        self.command.kill()


def append(folder: RunFolder, steps: range) -> None:
    """Records as the main worker writes them: training steps, and a validation after every tenth."""
    lines = JsonLines(folder.metrics)
    for step in steps:
        now = 1.7e9 + step
        lines.append({"step": step, "loss": 1 / step, "kd": None, "tokens_per_s": float(step), "time": now})
        if step % 10 == 0:
            validation = {"validation": {"text": {"ce": 2.0}}, "validation_ce": 2.0 / step}
            lines.append({"step": step, **validation, "time": now})


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain"
        time.sleep(0.05)


def history(run: Tracker, name: str) -> list[tuple[int, float]]:
    """Steps and values that the store has of a metric, each as often as it has it."""
    return sorted((one.step, one.value) for one in run.client.get_metric_history(run.run_id, name))


def opened(settings: Config) -> tuple[Tracker, list[str]]:
    """The run's tracker, following its records, and what it says."""
    said: list[str] = []
    tracker = Tracker(settings, RunFolder(settings.run_dir))
    tracker.follow(said.append)
    return tracker, said


def test_metrics_arrive_later_and_none_is_lost(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server dies while records come, and is back while they still come; it dies again and is down when the run
    is stopped, which ends soon and says what is missing; the resumed run delivers that too. Each step is there once.
    The run's folder has no password, and the run is the same one where that has changed."""
    monkeypatch.setattr(delivery, "_LONGEST_WAIT_S", 1.0)
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    server = Server(Path(shutil.copy(empty_store, tmp_path / "mlflow.db")))
    settings = config(tmp_path, tmp_path / "runs", tracking={"uri": f"http://me:old@127.0.0.1:{server.port}"})
    folder = RunFolder(settings.run_dir)
    try:
        server.start()
        first, said = opened(settings)
        append(folder, range(1, 11))
        wait_for(lambda: len(history(first, "loss")) == 10)
        server.kill()
        append(folder, range(11, 41))
        wait_for(lambda: said)
        assert said[0].startswith("MLflow takes no metrics now, and gets them later")
        server.start()
        wait_for(lambda: said[1:])
        append(folder, range(41, 51))
        wait_for(lambda: len(history(first, "loss")) == 50)
        server.kill()
        append(folder, range(51, 61))
        begin = time.monotonic()
        first.end("KILLED", within_s=2)
        assert time.monotonic() - begin < 60  # not the minutes for which MLflow's client tries by itself
        assert "MLflow does not have the newest 11 records" in said[-1]

        server.start()
        JsonLines(folder.metrics).drop_after(55)  # the checkpoint that the workers resume from
        assert "old" not in folder.mlflow.read_text()
        changed = {"uri": f"http://me:new@127.0.0.1:{server.port}"}
        second, said = opened(config(tmp_path, tmp_path / "runs", tracking=changed))
        append(folder, range(56, 71))
        second.end("FINISHED", within_s=120)
        assert not said and second.run_id == first.run_id == json.loads(folder.mlflow.read_text())["run_id"]
        assert history(second, "loss") == [(step, 1 / step) for step in range(1, 71)]
        assert history(second, "tokens_per_s") == [(step, float(step)) for step in range(1, 71)]
        assert history(second, "validation_ce") == [(step, 2.0 / step) for step in range(10, 71, 10)]
        assert second.client.get_run(second.run_id).info.status == "FINISHED"
    finally:
        server.kill()


def test_what_a_finished_run_could_not_deliver_comes_with_its_report(empty_store: Path, tmp_path: Path) -> None:
    """Opening the finished run again logs what is missing, before its scores."""
    store = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"
    settings = config(tmp_path, tmp_path / "runs", tracking={"uri": store})
    folder = RunFolder(settings.run_dir)
    with Tracker(settings, folder) as run:
        append(folder, range(1, 8))
        run.catch_up()
    append(folder, range(8, 12))
    with Tracker(settings, folder) as run:
        run.catch_up()
    assert [step for step, _ in history(run, "loss")] == list(range(1, 12))
