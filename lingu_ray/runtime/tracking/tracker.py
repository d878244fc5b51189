"""A training run in MLflow, and in the trackers of `tracking.also`, while it trains."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from mlflow.entities import Metric

from lingu_ray.config import Config
from lingu_ray.config.flat import flat
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.records import LoggedSteps, Record, RecordReader, named_numbers
from lingu_ray.runtime.tracking.also import open_also
from lingu_ray.runtime.tracking.delivery import Delivery
from lingu_ray.runtime.tracking.mlflow_run import MlflowRun
from lingu_ray.runtime.tracking.store import one_retry
from lingu_ray.runtime.tracking.store_uri import tracking_uri

_LAST_CALL_S = 30.0

log = logging.getLogger(__name__)


class Tracker(MlflowRun):
    """A training run in MLflow, written by the driver. Once it is open, a store that fails raises nothing."""

    def __init__(self, config: Config, folder: RunFolder):
        with one_retry():
            super().__init__(tracking_uri(config), config.tracking, folder.mlflow, config.name, flat(config))
        self.config, self.folder = config, folder
        self.deliveries: list[Delivery] = []

    def follow(self, say: Callable[[str], None]) -> LoggedSteps:
        """Log the records of metrics.jsonl as they come, here and in the trackers of `tracking.also`, to the run's end.

        `say` tells people what a tracker does not take. Returns the steps that MLflow has already.
        """
        self.say, path, known = say, self.folder.metrics, self.logged_steps()
        self.deliveries = [Delivery("MLflow", path, known, self._deliver, lambda: None, say)]
        for name, also in open_also(self.config, self.folder).items():
            self.deliveries.append(Delivery(name, path, also.logged, also.log, also.close, say))
        return known

    def catch_up(self) -> None:
        """Log the records that MLflow did not take while the run was training."""
        self.attempt(lambda: self.log(RecordReader(self.folder.metrics, self.logged_steps()).new_records()))

    def log_files(self, *paths: Path) -> None:
        """Log files and folders as artifacts; missing ones are left out."""
        self.attempt(lambda: super(Tracker, self).log_files(*paths))

    def pause(self, within_s: float = _LAST_CALL_S) -> None:
        """Leave the run RUNNING: it will be resumed. Trackers have `within_s` seconds to take what is left."""
        delivered = [delivery.finish(within_s) for delivery in self.deliveries]
        self.reached = self.reached and all(delivered[:1])
        self.deliveries = []
        if self.reached:  # the monitor waits for its own requests
            super().pause()

    def end(self, status: str, within_s: float = _LAST_CALL_S) -> None:
        """Close the run: FINISHED, FAILED or KILLED. Trackers have `within_s` seconds to take what is left."""
        self.pause(within_s)
        if self.reached:
            self.attempt(lambda: self.client.set_terminated(self.run_id, status))

    def _deliver(self, records: list[Record]) -> None:
        with one_retry():
            self.log(records)
        if self.monitor and self.monitor._process and not self.monitor._process.is_alive():
            self.watch_system()  # it has given up while the store did not answer

    def log(self, records: list[Record]) -> None:
        """Log every metric of the records."""
        self.log_metrics(
            [
                Metric(name, value, int(record["time"] * 1000), record["step"])
                for record in records
                for name, value in named_numbers(record)
            ]
        )

    def logged_steps(self) -> LoggedSteps:
        """The newest steps of which the store has this run's metrics."""
        return LoggedSteps(self._last_step("loss"), self._last_step("validation_ce"))

    def _last_step(self, name: str) -> int:
        history = self.client.get_metric_history(self.run_id, name)
        return max((metric.step for metric in history), default=0)
