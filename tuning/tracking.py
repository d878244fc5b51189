"""The sweep in MLflow: a parent run with table, best settings and plots; each trial's run is its child."""

from __future__ import annotations

import json
import time
from pathlib import Path

import mlflow
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from lingu_ray.config import Config
from lingu_ray.errors import UserError
from lingu_ray.runtime.folder import write_json
from lingu_ray.runtime.tracking import find_experiment, log_params, tracking_uri
from tuning.outcome import Outcome
from tuning.space import Space

PARENT_RUN = "mlflow.parentRunId"


class ParentRun:
    """The sweep's MLflow run; one that goes on writes into the same run again."""

    def __init__(self, space: Space, base: Config, folder: Path):
        uri, pointer = tracking_uri(base), folder / "mlflow.json"
        try:
            self.client = mlflow.MlflowClient(uri)
            self.experiment_id = find_experiment(self.client, base.tracking.experiment, uri)
            earlier = json.loads(pointer.read_text()) if pointer.exists() else None
            if earlier and earlier["uri"] == uri:
                self.run_id = self.client.get_run(earlier["run_id"]).info.run_id
            else:
                tags = base.tracking.tags | {"sweep": space.name}
                self.run_id = self.client.create_run(self.experiment_id, run_name=space.name, tags=tags).info.run_id
                log_params(self.client, self.run_id, space.model_dump(mode="json"))
            self.client.update_run(self.run_id, status="RUNNING")
        except MlflowException as error:
            raise UserError(f"tracking.uri={uri}: MLflow cannot open it. {error}") from error
        write_json(pointer, {"uri": uri, "run_id": self.run_id})

    def end_children(self, outcomes: list[Outcome]) -> None:
        """No child stays RUNNING after its trial: a trial that died could not end its run itself."""
        known = {outcome.run_id: outcome for outcome in outcomes}
        for run_id in self.running_children():
            outcome = known.get(run_id)
            self.client.set_terminated(run_id, "FAILED" if outcome and outcome.state == "failed" else "KILLED")
        for outcome in outcomes:
            if outcome.run_id is not None:
                self.client.set_tag(outcome.run_id, "state", outcome.state)
                if outcome.case is not None:
                    self.client.set_tag(outcome.run_id, "case", outcome.case)

    def running_children(self) -> list[str]:
        """Ids of children that MLflow takes for running."""
        found, token = [], None
        wanted = f"tags.`{PARENT_RUN}` = '{self.run_id}' and attributes.status = 'RUNNING'"
        while True:
            page = self.client.search_runs([self.experiment_id], wanted, page_token=token)
            found += [run.info.run_id for run in page]
            token = page.token
            if not token:
                return found

    def log(self, figures: dict[str, float | None], files: list[Path]) -> None:
        """Figures of the whole sweep, and its files."""
        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, 0) for name, value in figures.items() if value is not None]
        self.client.log_batch(self.run_id, metrics=metrics)
        for path in files:
            self.client.log_artifact(self.run_id, str(path))

    def end(self, status: str) -> None:
        """Close the run: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.run_id, status)
