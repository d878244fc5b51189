"""What the driver says of workers that were started again."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from lingu_ray.runtime.failures import NAME, NoteFailures, Restarts

DIED = WorkerHealthCheckFailedError("…", ActorDiedError())  # as the controller has them
TAKEN_AWAY = WorkerHealthCheckFailedError("…", RayActorError(preempted=True))
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
            [{0: TAKEN_AWAY}, {0: TAKEN_AWAY, 1: ENDED}],
            ["a node was taken away; workers are started again from step 40 where there is room"],
        ),
    ],
)
def test_what_is_said(tmp_path: Path, failures: list[dict[int, Exception]], said: list[str]) -> None:
    """Who died, or failed with what, and how many more are allowed; nodes that are taken away are not counted; what an
    earlier command has noted is not said again."""
    note = NoteFailures(tmp_path / ".ray")
    note.after_exception(None, {0: DIED})
    restarts = Restarts(tmp_path / ".ray", 2)
    assert restarts.new_messages(lambda: 0) == []
    for failure in failures:
        note.after_exception(None, failure)
    assert restarts.new_messages(lambda: 40) == said
    assert restarts.new_messages(lambda: 40) == []
    assert (tmp_path / ".ray" / NAME).exists()
