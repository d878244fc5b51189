"""Workers that fail: Ray Train's controller ends the run, or notes them for the driver to tell of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError
from ray.train import UserCallback

from lingu_ray.errors import full_disk, user_error
from lingu_ray.runtime.cluster.memory import full_node
from lingu_ray.runtime.run_folder.records import JsonLines, Record, read_records

NAME = "failures.jsonl"  # beside Ray Train's state; the controller runs on the driver's node
LENGTH = 200  # characters of an error that are kept


class OnFailure(UserCallback):
    """What Ray Train's controller does with workers that end by an error.

    A `UserError`, or a disk without room, ends the run: trying again cannot fix it. Others are noted for `Restarts`.
    """

    def __init__(self, folder: Path):
        self.file = JsonLines(folder / NAME)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called before the workers are started again; what is raised here the controller takes for its own failure."""
        for error in worker_exceptions.values():
            if found := user_error(error) or full_disk(error):
                raise found
        errors = [getattr(error, "health_check_failure", error) for error in worker_exceptions.values()]
        self.file.path.parent.mkdir(parents=True, exist_ok=True)
        died = all(isinstance(error, RayActorError) for error in errors)
        self.file.append(
            {
                "ranks": sorted(worker_exceptions),
                "what": "died" if died else f"failed ({_first_line(errors[0])})",
                "preempted": any(getattr(error, "preempted", False) for error in errors),
            }
        )


class Restarts:
    """The driver's messages on workers that were started again; of nodes that are taken away one at each step."""

    def __init__(self, folder: Path, max_failures: int):
        self.path, self.max_failures = folder / NAME, max_failures
        self.path.unlink(missing_ok=True)
        self.seen = self.failures = 0
        self.preempted_at: int | None = None

    def new_messages(self, newest_step: Callable[[], int]) -> list[str]:
        """What to say of failures since the last call; `newest_step` gives the step of the newest checkpoint."""
        new = read_records(self.path)[self.seen :]
        step = newest_step() if new else 0
        self.seen += len(new)
        return [message for record in new if (message := self._message(record, step))]

    def _message(self, record: Record, step: int) -> str | None:
        again = f"started again from step {step}"
        if record["preempted"]:
            known, self.preempted_at = self.preempted_at == step, step
            return None if known else f"a node was taken away; workers are {again} where there is room"
        self.failures += 1
        if self.failures > self.max_failures:
            return None  # the run ends, and says why
        workers = ", ".join(map(str, record["ranks"]))
        several = "s" if len(record["ranks"]) > 1 else ""
        budget = f"{self.failures} of ray.max_failures={self.max_failures}"
        return f"worker{several} {workers} {record['what']}; {again} ({budget})"


def _first_line(error: Exception) -> str:
    if (full := full_node(error)) is not None:
        return f"ended by Ray, since its node ran out of memory: {full}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1][:LENGTH]  # of a traceback the error itself
