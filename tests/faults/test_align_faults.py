"""Ctrl-C while a VLM is being aligned: the run ends at once, leaves no half, and the same command begins that again."""

import signal

import commands
import pytest
from tinyrun import write_settings

from lingu_ray.runtime.run_folder.folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.faults, pytest.mark.timeout(600)]

MANY = 400  # epochs of one step each: some seconds
TRAIN = {"steps": 2, "validate_every": 0, "sample_every": 0}


def start(data, output, name):
    path = write_settings(output / f"{name}.yaml", data, output, name=name, align={"epochs": MANY}, train=TRAIN)
    return commands.start_warm("lingu_ray.train", path)


def test_interrupted_while_aligning(warm_workers, data, tmp_path, monkeypatch):
    """Neither weights nor record are there, a second start aligns from the beginning, as an undisturbed run does."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with start(data, tmp_path, "struck") as command:
        command.wait_for(lambda: "aligning, training: step" in command.printed)
        command.process.send_signal(signal.SIGINT)
        said = command.finish(130)
    assert "Traceback" not in said
    struck = RunFolder(tmp_path / "struck")
    assert not struck.aligned_weights.exists() and not struck.alignment.exists()
    aligned = []
    for name in ("struck", "undisturbed"):
        with start(data, tmp_path, name) as command:
            command.finish()
        aligned.append(RunFolder(tmp_path / name).aligned_weights.read_bytes())
    assert aligned[0] == aligned[1]
