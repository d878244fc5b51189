"""What Ray Train's controller does before it starts the workers anew in another number: it has them save.

Ray Train looks every `ray.num_workers.check_every_s` at the room in the cluster and, where it has changed, ends the
workers at once; they are started again from the newest checkpoint. So that no step is trained twice, they are asked for
one first. Light to import: the controller needs no model code.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

from ray.exceptions import RayError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import ResizingState

_SAVED_WITHIN_S = 300.0
"""A step and its checkpoint; after it the workers are ended without."""
_POLL_S = 0.2
_ENDED_WITHIN_S = 5.0

save_asked = threading.Event()
"""In the main worker's process: a checkpoint is wanted after this step."""


class SaveBeforeResize(ControllerCallback, WorkerGroupCallback):
    """Has the workers save a checkpoint before their number changes."""

    def __init__(self) -> None:
        self.group: Any = None

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        """Called by Ray Train when workers have started."""
        self.group = worker_group

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Called by Ray Train; in `ResizingState` the workers still train."""
        if isinstance(current_state, ResizingState):
            with suppress(RayError):  # a worker has died meanwhile: the newest checkpoint is what there is
                self._save()

    def _save(self) -> None:
        self.group.execute_single(0, _ask)
        deadline = time.monotonic() + _SAVED_WITHIN_S
        while time.monotonic() < deadline and self.group.execute_single(0, _is_asked):
            status = self.group.poll_status(_POLL_S)  # without it, workers that report would wait for ever
            if status.errors or status.finished:  # after the last step the workers export, and end
                return
            time.sleep(_POLL_S)


def wait_to_be_ended() -> None:
    """Called by each worker when the checkpoint that was asked for is complete; goes on if it was not ended."""
    save_asked.clear()
    time.sleep(_ENDED_WITHIN_S)


def _ask() -> None:
    save_asked.set()


def _is_asked() -> bool:
    return save_asked.is_set()
