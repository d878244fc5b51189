"""The process groups of Ray Train's workers: what remains of them does not end a run whose worker was ended by Ray."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from ray.exceptions import OutOfMemoryError
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from lingu_ray.errors import first_line

log = logging.getLogger(__name__)


class _Backend(_TorchBackend):
    """Ray Train's own, which forgives a dead worker at the end, but not one that Ray's memory monitor ended.

    There its controller would fail, and with it the run, in place of starting the workers again.
    """

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        try:
            super().on_shutdown(worker_group, backend_config)
        except OutOfMemoryError as error:
            log.info("no process group to end: %s", first_line(error))


@dataclass
class Groups(TorchConfig):
    """How the workers talk, as in `TorchConfig`."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What starts the groups, and ends them."""
        return _Backend
