"""Trackers beside MLflow (`tracking.also`): the same metrics at the same steps. Both are optional packages.

They are opened with the first record that they take, so one that cannot be opened yet gets its records later.
"""

from __future__ import annotations

import re
import shutil
import uuid
from dataclasses import asdict
from functools import cached_property
from importlib.util import find_spec
from typing import Any

from lingu_ray.atomic import read_json, write_json
from lingu_ray.config import Config
from lingu_ray.config.flat import flat
from lingu_ray.errors import UserError
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.records import LoggedSteps, Record, named_numbers

_NOT_IN_A_PROJECT = re.compile(r"[/\\#?%:]")
_LONGEST_NAME, _LONGEST_TAG = 128, 64  # that Weights & Biases takes; MLflow takes other and longer ones


class TensorBoard:
    """Scalars in `tensorboard/` of the run's folder; a resumed run writes all of its records there again."""

    def __init__(self, config: Config, folder: RunFolder):
        self.place = folder.tensorboard
        self.logged = LoggedSteps(0, 0)

    @cached_property
    def writer(self) -> Any:
        """The open event file."""
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(self.place, ignore_errors=True)
        return SummaryWriter(str(self.place), flush_secs=10)

    def log(self, records: list[Record]) -> None:
        """Log every metric of the records."""
        for record in records:
            for name, value in named_numbers(record):
                self.writer.add_scalar(name, value, record["step"], walltime=record["time"])

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


class WandB:
    """A run of Weights & Biases, resumed by the id in `wandb.json`; `WANDB_MODE=offline` keeps it in `wandb/`."""

    def __init__(self, config: Config, folder: RunFolder):
        self.config, self.folder = config, folder
        self.pointer = folder.wandb
        known = read_json(self.pointer) if self.pointer.exists() else {}
        self.run_id: str = known.get("run_id", uuid.uuid4().hex[:8])
        self.logged = LoggedSteps(known.get("training", 0), known.get("validation", 0))

    @cached_property
    def run(self) -> Any:
        """The open run."""
        import wandb

        settings, statistics = self.config.tracking, self.config.tracking.system_metrics
        return wandb.init(
            id=self.run_id,
            resume="allow",
            reinit="create_new",  # beside the run of a control
            project=_NOT_IN_A_PROJECT.sub("-", settings.experiment)[:_LONGEST_NAME],
            name=(settings.run_name or self.config.name)[:_LONGEST_NAME],
            tags=[f"{key}: {value}"[:_LONGEST_TAG] for key, value in settings.tags.items()],
            config=flat(self.config),
            dir=str(self.folder.root),
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=not statistics),
        )

    def log(self, records: list[Record]) -> None:
        """Log every metric of the records."""
        for record in records:
            self.run.log(dict(named_numbers(record)), step=record["step"])
            self.logged = self.logged.with_record(record)
        write_json(self.pointer, {"run_id": self.run_id, **asdict(self.logged)})

    def close(self) -> None:
        """Write what is left."""
        self.run.finish()


TRACKERS: dict[str, type[TensorBoard | WandB]] = {"tensorboard": TensorBoard, "wandb": WandB}


def check_also(config: Config) -> None:
    """Raise UserError where a tracker of `tracking.also` is not installed, or has no key."""
    for name in config.tracking.also:
        if find_spec(name) is None:
            raise UserError(f"tracking.also: {name} is not installed: pip install 'lingu-ray[{name}]'")
    if "wandb" in config.tracking.also:
        import wandb

        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
            raise UserError("tracking.also: wandb has no key on this machine: wandb login, or WANDB_MODE=offline")


def open_also(config: Config, folder: RunFolder) -> dict[str, TensorBoard | WandB]:
    """The trackers of `tracking.also`, by name."""
    return {name: TRACKERS[name](config, folder) for name in config.tracking.also}
