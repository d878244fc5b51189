"""What Ray Train's controller does with a worker's error. Light to import: the controller needs no model code."""

from __future__ import annotations

from typing import Any

from ray.train import UserCallback

from lingu_ray.errors import full_disk, user_error


class NoRetryOfUserErrors(UserCallback):
    """Ends a run whose worker raised a `UserError`, or found no room on a disk: trying again cannot fix it.

    Other failures are tried again.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by Ray Train's controller, which takes what is raised here for its own failure, and gives up."""
        for error in worker_exceptions.values():
            if found := user_error(error) or full_disk(error):
                raise found
