"""A trial of population-based training, which pauses after every interval."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from lingu_ray.atomic import read_json, write_json, write_text
from lingu_ray.config.command_line import load_yaml, to_yaml
from lingu_ray.runtime.checkpoints.checkpoint import checkpoints
from tuning.space import Values, configure
from tuning.trial import POLL_S, Sweep, Trial


class PopulationTrial(Trial):
    """A trial of population-based training: its run pauses after every interval, and may resume as a copy of another.

    What is drawn holds for one interval; the values of all intervals so far are the schedule that the run follows.
    `history`: steps trained so far, and the values of each interval with the fraction of the run it starts at.
    """

    def setup(self, config: dict[str, Any], sweep: Sweep) -> None:
        """As of `Trial`; where the folder has a history, the trial resumes from there."""
        super().setup(config, sweep)
        self.drawn = self.values
        self.history: dict[str, Any] = {"step": 0, "values": []}
        if self._history_file.exists():
            self.history = read_json(self._history_file, "step", "values")

    def advance(self) -> dict[str, Any]:
        """Train one interval; after the last one, measure."""
        assert self.sweep.space.pbt is not None
        steps = self.sweep.base.train.steps
        until, drawn = self.history["step"], self.history["values"]
        if until < steps:  # else a kill has left the measuring to do
            drawn = [*drawn, [until / steps, self.drawn]]
            until = min(until + self.sweep.space.pbt.interval, steps)
        self.values = schedules(drawn)
        self.update_outcome(values=self.values)
        if self.folder.config.exists():  # the schedule has become longer
            longer = configure(load_yaml(self.folder.config), self.values, self.name)
            write_text(self.folder.config, to_yaml(longer))
        run = self.run = self.begin(self.values, until)
        while run.training:
            time.sleep(POLL_S)
            run.follow()
        run.follow()
        self.end(run)
        self.history = {"step": until, "values": drawn}
        write_json(self._history_file, self.history)
        return self.finish(run) if until == steps else self.result(done=False)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Copy the run's newest checkpoint, its metrics and its history."""
        target = Path(checkpoint_dir)
        newest, _ = checkpoints(self.folder.checkpoints)[-1]
        shutil.copytree(newest, target / "checkpoints" / newest.name)
        shutil.copy(self.folder.metrics, target / self.folder.metrics.name)
        shutil.copy(self._history_file, target / self._history_file.name)

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Resume from a copy, most often of another trial; after a kill this one may be further, or finished."""
        if self.finished:
            return
        source = Path(checkpoint)
        for own in (self.folder.checkpoints, self.folder.export):
            shutil.rmtree(own, ignore_errors=True)
        shutil.copytree(source / "checkpoints", self.folder.checkpoints)
        shutil.copy(source / self.folder.metrics.name, self.folder.metrics)
        shutil.copy(source / self._history_file.name, self._history_file)
        self.history = read_json(self._history_file, "step", "values")

    @property
    def _history_file(self) -> Path:
        return self.folder.root / "history.json"


def schedules(drawn: list[list[Any]]) -> Values:
    """Each value as a schedule in steps, from (fraction of the run, values) pairs."""
    keys = drawn[0][1]
    return {key: [[begin, values[key]] for begin, values in drawn] for key in keys}
