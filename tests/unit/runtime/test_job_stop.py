"""What a run says about the time that `ray job stop` leaves it."""

import json

import pytest

from lingu_ray.runtime.run_folder.job_stop import StopWait

JOB = json.dumps({"runtime_env": {}, "metadata": {"job_submission_id": "raysubmit_1"}})


def steps(*seconds):
    """Records of a run: steps of so many seconds, and a validation."""
    return [{"step": i + 1, "step_s": s} for i, s in enumerate(seconds)] + [{"step": 1, "validation_ce": 1.0}]


@pytest.mark.parametrize(
    ("wait", "seconds", "at_start", "later"),
    [
        (None, (9.0, 1.0, 1.0), "3 s after", None),  # the first step is no measure
        (None, (1.0, 10.0), "3 s after", '"RAY_JOB_STOP_WAIT_TIME_S": "120"'),
        ("30", (1.0, 10.0), None, None),
        ("30", (1.0, 100.0), None, '"RAY_JOB_STOP_WAIT_TIME_S": "400"'),
    ],
)
def test_a_wait_that_is_too_short_is_named_with_its_cure(monkeypatch, wait, seconds, at_start, later):
    """Ray's default is warned of at the start, a short wait once the steps are known, and never twice; else nothing."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", JOB)
    monkeypatch.delenv("RAY_JOB_STOP_WAIT_TIME_S", raising=False)
    if wait is not None:
        monkeypatch.setenv("RAY_JOB_STOP_WAIT_TIME_S", wait)
    stop = StopWait()
    assert (stop.warning_at_start() or "").count(at_start or "`") == (at_start is not None)
    first, again = stop.warning_after(steps(*seconds)), stop.warning_after(steps(50.0))
    assert (first is None) if later is None else later in first
    assert again is None or first is None


def test_outside_of_a_job_nothing_is_said(monkeypatch):
    """Where Ray does not stop the run there is nothing to warn of, however long its steps."""
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    stop = StopWait()
    assert stop.warning_at_start() is None and stop.warning_after(steps(1.0, 1000.0)) is None
