"""Ctrl-C on a sweep, by the signal that Ray Tune takes for a request to end; without Ray."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from ray import tune

from tuning import run
from tuning.outcome import Outcome, read_outcome
from tuning.run import mark_dead, saving_on_interrupt
from tuning.search import STEP


def test_a_tune_that_is_still_starting_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hears the signal once it listens, be that after the trials were found saved; none comes when it has ended."""
    monkeypatch.setattr(run, "_POLL_S", 0.05)
    heard, before = threading.Event(), signal.getsignal(signal.SIGUSR1)
    with saving_on_interrupt(tmp_path) as interrupted:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted.is_set()
        time.sleep(0.3)
        signal.signal(signal.SIGUSR1, lambda *_: heard.set())
        assert heard.wait(30)
    heard.clear()
    assert signal.getsignal(signal.SIGUSR1) == before and not heard.wait(0.3)


def test_a_trial_that_tune_does_not_know_of_is_not_waited_for(tmp_path: Path) -> None:
    """SIGKILL came before Tune had written it down: its folder says that it runs, and nobody will start it again."""
    Outcome("trial-1", {}, None, 0).write(tmp_path / "trial-1")
    with saving_on_interrupt(tmp_path):
        left = read_outcome(tmp_path / "trial-1")
        assert left is not None and left.state == "stopped" and not left.has_ended


def test_a_trial_whose_folder_is_gone_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ray Tune has it as ended and does not start it again, so the report would lack it without a word.

    Nothing is said of one that was never started, as where the time of the sweep is up.
    """
    Outcome("trial-1", {}, None, 0, "finished").write(tmp_path / "trial-1")
    told = {"trial-1": {STEP: 8}, "trial-2": {STEP: 8}, "trial-3": {}, "trial-4": None}
    mark_dead([tune.Result(metrics, None, None, f"/tune/{name}") for name, metrics in told.items()], tmp_path)
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / 'trial-2'} is gone, so the report lacks this trial")
