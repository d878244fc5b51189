"""The lines of a run without a terminal."""

import pytest

from lingu_ray import live
from lingu_ray.runtime.tracking.progress import Progress


def test_time_left_is_that_of_the_steps_that_were_seen(monkeypatch: pytest.MonkeyPatch, capsys):
    """None at the first step, whose start nobody saw; then by the steps since, of a resumed run too."""
    now = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    progress = Progress("mine", 1000)
    of_step = {"loss": 1.0, "ce": 1.0, "kd": None, "tokens_per_s": 1.0, "data_wait": 0.0, "teacher_wait": 0.0}
    for step, now[0] in ((101, 0.0), (103, 20.0)):
        progress.show({"step": step, **of_step})
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("mine: step 101/1000  loss 1.000") and "ETA" not in first
    assert second.endswith("ETA 149:30")  # 20 s for two steps, and 897 left
