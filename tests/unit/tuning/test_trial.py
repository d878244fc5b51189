"""What a trial writes of its own end, without Ray: whether the scheduler stopped it for good, or the user for now."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lingu_ray.errors import Interrupted
from lingu_ray.runtime.run_folder.folder import RunFolder
from tuning.outcome import Outcome, read_outcome
from tuning.trial import STOP, Trial


@pytest.fixture
def trial(tmp_path: Path) -> Any:
    """A running trial, whose sweep's trials lie in `tmp_path`."""
    made: Any = Trial.__new__(Trial)
    made.run, made.sweep, made.last_update = None, SimpleNamespace(trials=tmp_path), time.monotonic()
    made.folder, made.outcome = RunFolder(tmp_path / "trial-1"), Outcome("trial-1", {}, None, 0)
    return made


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_trial_says_who_stopped_it(trial: Any, tmp_path: Path, by_hand: bool):
    """Where the sweep was asked to stop the trial is resumed later; what the scheduler stops has ended."""
    if by_hand:
        (tmp_path / STOP).touch()
    trial.cleanup()
    written = read_outcome(tmp_path / "trial-1")
    assert written is not None and written.state == "stopped"
    assert (written.by_hand, written.has_ended) == (by_hand, not by_hand)


def test_a_run_that_was_interrupted_is_resumed(trial: Any, tmp_path: Path):
    """Its workers saved and ended before training did."""

    def end() -> None:
        raise Interrupted("stopped and saved")

    with pytest.raises(Interrupted):
        trial.end(SimpleNamespace(end=end))
    written = read_outcome(tmp_path / "trial-1")
    assert written is not None and written.by_hand and not written.has_ended
