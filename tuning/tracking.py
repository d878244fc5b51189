"""The sweep in MLflow: a run with table, best settings and plots; each trial's run is nested under it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mlflow.entities import RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from lingu_ray.config import Config
from lingu_ray.config.flat import flat
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.tracking.mlflow_run import MlflowRun, runs_in
from lingu_ray.runtime.tracking.store_uri import tracking_uri
from tuning.folder import SweepFolder
from tuning.outcome import Outcome
from tuning.space import Space


class SweepRun(MlflowRun):
    """The sweep's MLflow run. Trials are nested under it by `tracking.parent`, the sweep's folder.

    Once it is open, a store that fails ends neither the trials nor the report: it gets the rest by the same command.
    """

    def __init__(self, space: Space, base: Config, folder: SweepFolder):
        settings = base.tracking.model_copy(update={"tags": base.tracking.tags | {"sweep": space.name}})
        super().__init__(tracking_uri(base), settings, RunFolder(folder.root).mlflow, space.name, flat(space))

    def log_figures(self, figures: Mapping[str, float | None]) -> None:
        """Figures of the sweep (`MlflowRun.log_figures`)."""
        self.attempt(lambda: super(SweepRun, self).log_figures(figures))

    def log_files(self, *paths: Path) -> None:
        """Log files as artifacts; missing ones are left out."""
        self.attempt(lambda: super(SweepRun, self).log_files(*paths))

    def end(self, status: str) -> None:
        """Close the run: FINISHED, FAILED or KILLED."""
        self.attempt(lambda: super(SweepRun, self).end(status))

    def end_children(self, outcomes: list[Outcome]) -> None:
        """End the trials' runs as their trials ended, and nest them under this one (`_end_children`)."""
        self.attempt(lambda: self._end_children(outcomes))

    def _end_children(self, outcomes: list[Outcome]) -> None:
        """No child stays RUNNING after its trial: a trial that died could not end its run itself.

        Every trial's run is tagged with its outcome, and made a child of this run, also where this one is new.
        """
        known = {outcome.run_id: outcome for outcome in outcomes}
        for outcome in outcomes:
            if outcome.run_id is not None and self.find(outcome.run_id) is not None:
                tags = {MLFLOW_PARENT_RUN_ID: self.run_id, "state": outcome.state, "case": outcome.case}
                found = [RunTag(name, value) for name, value in tags.items() if value is not None]
                self.client.log_batch(outcome.run_id, tags=found)
        for run_id in self.running_children():
            outcome = known.get(run_id)
            self.client.set_terminated(run_id, "FAILED" if outcome and outcome.state == "failed" else "KILLED")

    def running_children(self) -> list[str]:
        """Ids of children whose status in MLflow is RUNNING."""
        wanted = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.run_id}' and attributes.status = 'RUNNING'"
        return [run.info.run_id for run in runs_in(self.client, self.experiment_id, wanted)]
