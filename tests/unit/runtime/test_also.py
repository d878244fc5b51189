"""Trackers beside MLflow: TensorBoard and Weights & Biases get the same names, steps and values; none stops a run."""

import importlib.util
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tinyrun import config

from lingu_ray.config import Config
from lingu_ray.errors import UserError
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.records import JsonLines, LoggedSteps, Record, RecordReader
from lingu_ray.runtime.tracking.also import TRACKERS, check_also
from lingu_ray.runtime.tracking.delivery import Delivery

pytestmark = pytest.mark.slow  # other trackers with their libraries

Points = dict[str, dict[int, float]]


def record(step: int) -> list[Record]:
    """What a step writes, with a validation at even ones."""
    training = {"step": step, "loss": 1.0 / step, "kd": None, "tokens_per_s": 8.0, "time": 1.7e9 + step}
    validation = {"step": step, "validation": {"text": {"ce": 2.0}}, "validation_ce": 2.5, "time": 1.7e9 + step}
    return [training, validation] if step % 2 == 0 else [training]


def expected(steps: range) -> Points:
    """The names and steps that MLflow has of them."""
    even = [step for step in steps if step % 2 == 0]
    return {
        "loss": {step: 1.0 / step for step in steps},
        "tokens_per_s": dict.fromkeys(steps, 8.0),
        "validation_ce": dict.fromkeys(even, 2.5),
        "validation_ce.text": dict.fromkeys(even, 2.0),
    }


def deliver(settings: Config, name: str, steps: range, said: list[str]) -> Any:
    """One life of a run: its new records go to the tracker, and it is closed."""
    folder = RunFolder(settings.run_dir)
    also = TRACKERS[name](settings, folder)
    lines = JsonLines(folder.metrics)
    for step in steps:
        for one in record(step):
            lines.append(one)
    delivery = Delivery(name, folder.metrics, also.logged, also.log, also.close, said.append)
    assert delivery.finish(120)
    return also


def settings_for(tmp_path: Path, *names: str) -> Config:
    """A run that is tracked by these, too."""
    settings = config(tmp_path, tmp_path / "runs", tracking={"also": names, "system_metrics": False})
    settings.run_dir.mkdir(parents=True)
    return settings


def test_tensorboard_has_the_same_metrics_and_a_resumed_run_continues(tmp_path: Path) -> None:
    """After a resume that did steps 3 and 4 again: every step once."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings, said = settings_for(tmp_path, "tensorboard"), []
    deliver(settings, "tensorboard", range(1, 5), said)
    JsonLines(RunFolder(settings.run_dir).metrics).drop_after(2)
    deliver(settings, "tensorboard", range(3, 8), said)
    events = EventAccumulator(str(settings.run_dir / "tensorboard"))
    events.Reload()
    found = {name: {one.step: one.value for one in events.Scalars(name)} for name in events.Tags()["scalars"]}
    assert found == {name: pytest.approx(points) for name, points in expected(range(1, 8)).items()} and not said
    assert all(len(events.Scalars(name)) == len(points) for name, points in found.items())


def test_wandb_has_the_same_metrics_and_a_resumed_run_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, without an account: two lives of a run have one id, and each step is in one of them."""
    wandb = pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_CONFIG_DIR": str(tmp_path), "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    settings, said = settings_for(tmp_path, "wandb"), []
    names = {
        "experiment": "/Users/me/vlm: 2",
        "run_name": "x" * 200,
        "tags": {"note": "y" * 100},
    }  # as MLflow takes them
    settings = settings.model_copy(update={"tracking": settings.tracking.model_copy(update=names)})
    check_also(settings)
    first = deliver(settings, "wandb", range(1, 5), said)
    JsonLines(RunFolder(settings.run_dir).metrics).drop_after(2)
    second = deliver(settings, "wandb", range(3, 8), said)
    wandb.teardown()
    assert first.run_id == second.run_id and first.run_id != TRACKERS["wandb"](settings, RunFolder(tmp_path)).run_id
    lives = sorted((settings.run_dir / "wandb").glob(f"offline-run-*/run-{first.run_id}.wandb"))
    points = [wandb_points(life) for life in lives]
    assert points == [expected(range(1, 5)), expected(range(5, 8))] and not said


def wandb_points(path: Path) -> Points:
    """The metrics in an offline run's file, by step."""
    from wandb.proto import wandb_internal_pb2

    found: Points = {}
    for data in log_entries(path.read_bytes()):
        entry = wandb_internal_pb2.Record()
        entry.ParseFromString(data)
        if entry.WhichOneof("record_type") == "history":
            values = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in entry.history.item}
            for name in values.keys() - {"_step", "_runtime", "_timestamp"}:
                found.setdefault(name, {})[int(values["_step"])] = values[name]
    return found


def log_entries(data: bytes) -> Iterator[bytes]:
    """The entries of a file in LevelDB's log format, behind W&B's header of 7 bytes."""
    position, entry = 7, b""
    while position + 7 < len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        entry += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole one, or the last part of one
            yield entry
            entry = b""


def test_what_is_not_installed_is_said_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it; the same for a key that is missing."""
    settings = settings_for(tmp_path, "tensorboard")
    found = importlib.util.find_spec
    without = "lingu_ray.runtime.tracking.also.find_spec"
    monkeypatch.setattr(without, lambda name: None if name == "tensorboard" else found(name))
    with pytest.raises(
        UserError, match=r"tracking\.also: tensorboard is not installed: pip install 'lingu-ray\[tensor"
    ):
        check_also(settings)


def test_a_tracker_that_fails_is_told_once_and_gets_its_records_later(tmp_path: Path) -> None:
    """In order and each once, with a line when it fails and one when it works; one that never works ends in time."""
    lines, said, taken, down = JsonLines(tmp_path / "m.jsonl"), [], [], [True]

    def send(records: list[Record]) -> None:
        if down[0]:
            raise ConnectionError("http://me:s3cret@host is away\nTraceback …")
        taken.extend(one["step"] for one in records)

    delivery = Delivery("It", lines.path, LoggedSteps(1, 0), send, lambda: None, said.append)
    for step in range(1, 200):
        lines.append({"step": step, "loss": 1.0})
    while not said:
        time.sleep(0.01)
    down[0] = False
    assert delivery.finish(60) and taken == list(range(2, 200))
    assert said == ["It takes no metrics now, and gets them later: http://…@host is away", "It takes metrics again"]

    down[0], said[:] = True, []
    delivery = Delivery("It", lines.path, LoggedSteps(150, 0), send, lambda: None, said.append)
    assert not delivery.finish(0.5)
    assert said[-1].startswith("It does not have the newest 49 records; they are in ")


def test_records_that_cannot_be_read_are_delivered_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that fails is told once and tried again; where it fails to the end, not all counts as delivered."""
    lines, said, taken, failing = JsonLines(tmp_path / "m.jsonl"), [], [], [True]
    read = RecordReader.new_records

    def new_records(self: RecordReader) -> list[Record]:
        if failing[0]:
            raise OSError("Stale file handle")
        return read(self)

    monkeypatch.setattr(RecordReader, "new_records", new_records)
    lines.append({"step": 1, "loss": 1.0})
    delivery = Delivery("It", lines.path, LoggedSteps(0, 0), taken.extend, lambda: None, said.append)
    while not said:
        time.sleep(0.01)
    assert not delivery.finish(0.2) and not taken
    assert said == [
        "It takes no metrics now, and gets them later: Stale file handle",
        f"It does not have all records; they are in {lines.path}, and the same command delivers them",
    ]
    delivery.thread.join()
    said.clear()
    delivery = Delivery("It", lines.path, LoggedSteps(0, 0), taken.extend, lambda: None, said.append)
    while not said:
        time.sleep(0.01)
    failing[0] = False
    assert delivery.finish(30) and taken == [{"step": 1, "loss": 1.0}]
    assert said[1:] == ["It takes metrics again"]
