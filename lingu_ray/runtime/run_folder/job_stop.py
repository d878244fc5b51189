"""`ray job stop`: Ray sends SIGTERM, and SIGKILL a while later; a run that needs longer for a step says so before."""

from __future__ import annotations

import json
import os
from typing import Any

from lingu_ray.runtime.run_folder.records import Record

STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"  # of the job's runtime environment, which its driver has, too
_DEFAULT_WAIT_S = 3.0  # Ray's own
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # which Ray sets in a job's driver
ADVISED_S = 120
"""Seconds that a job should get at least."""


def job_id() -> str | None:
    """The submission id of the Ray job that this process drives; None outside of a job."""
    return _job().get("metadata", {}).get("job_submission_id")


def job_variables() -> set[str]:
    """Names of the variables in the runtime environment of the Ray job that this process drives."""
    return set((_job().get("runtime_env") or {}).get("env_vars") or {})


def _job() -> dict[str, Any]:
    return json.loads(os.environ.get(_JOB, "{}"))


class StopWait:
    """Whether `ray job stop` leaves a job the time for a step and its checkpoint; what to say where it does not."""

    def __init__(self) -> None:
        self.in_job = job_id() is not None
        self.wait_s = float(os.environ.get(STOP_WAIT, _DEFAULT_WAIT_S))
        self.chosen = STOP_WAIT in os.environ
        self.steps = 0

    def warning_at_start(self) -> str | None:
        """The warning before the length of a step is known: where nobody has chosen how long Ray waits."""
        if not self.in_job or self.chosen:
            return None
        return f"{self._kills()} if a step and its checkpoint take longer, {self._lost(ADVISED_S)}"

    def warning_after(self, records: list[Record]) -> str | None:
        """The warning for steps that take too long, given once; the first step is no measure of the others."""
        for record in (record for record in records if "step_s" in record):
            self.steps += 1
            needed_s = 2 * record["step_s"]  # the rest of the step, and its checkpoint
            if self.in_job and self.steps > 1 and needed_s > self.wait_s:
                self.in_job = False
                advised_s = max(ADVISED_S, round(2 * needed_s))
                return f"{self._kills()} a step takes {record['step_s']:.1f} s, so {self._lost(advised_s)}"
        return None

    def _kills(self) -> str:
        return f"`ray job stop` kills this job {self.wait_s:g} s after it asks it to save:"

    def _lost(self, advised_s: int) -> str:
        variable = json.dumps({"env_vars": {STOP_WAIT: str(advised_s)}})
        return f"all since the newest checkpoint is lost. Submit it with --runtime-env-json '{variable}'"
