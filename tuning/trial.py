"""One trial: a complete run in a folder of its own, driven by Ray Tune from validation to validation.

The trial itself only follows: training is Ray Train's, and measuring is a task, each with resources of their own. A
trial that is stopped lets its workers save and end, so that nothing they hold is left behind; one that is started again
resumes from its newest checkpoint.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray import tune

from lingu_ray.config import Config
from lingu_ray.errors import Interrupted, UserError
from lingu_ray.evaluation.results import Recovery
from lingu_ray.evaluation.roles import DISTILLED
from lingu_ray.evaluation.run import evaluate
from lingu_ray.paths import starting_from
from lingu_ray.runtime.run import Run
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.lease import Lease
from lingu_ray.runtime.run_folder.records import Record, read_records
from lingu_ray.runtime.tracking.progress import quiet_libraries
from lingu_ray.runtime.tracking.store_uri import same_store
from lingu_ray.storage import CACHE, origin, remove
from lingu_ray.train import show
from tuning.baseline import lend_items, reference_roles
from tuning.outcome import Outcome, read_outcome, reason, score
from tuning.search import SCORE, STEP, USER_ERROR, VALIDATION
from tuning.space import CASE, Space, Values, configure, decode, drawn_seed, seeded

STOP = "STOP"
"""A file beside the trials' folders: the sweep was asked to stop."""
POLL_S = 0.25
_WORST = 1e30
"""Schedulers leave out trials that tell NaN, and have no percentile of what is infinite."""


@dataclass(frozen=True)
class Sweep:
    """What all trials share: `base` is prepared, `items` the folder of the reference models' measured items,
    `concurrent` how many trials run at once, `start` the folder that relative paths start from, `lease` the driver's on
    the sweep's folder, `cache` the folder of its node's copies, `mlflow` its variables of MLflow, which no file has.
    """

    space: Space
    base: Config
    trials: Path
    items: Path
    concurrent: int
    start: Path
    lease: Lease
    cache: Path
    mlflow: dict[str, str]


class Trial(tune.Trainable):
    """A complete run of one setting. A `step` lasts until the next validation; the last one measures the model."""

    # pyrefly: ignore [bad-override]  (`tune.with_parameters` adds arguments)
    def setup(self, config: dict[str, Any], sweep: Sweep) -> None:
        """Read the settings and, for a trial that was started before, its outcome so far."""
        quiet_libraries()
        if isinstance(origin(sweep.trials), str):
            os.environ[CACHE] = str(sweep.cache)  # the driver's working folder is the trials', too
        os.environ.update(sweep.mlflow)  # its own node may have others, or none
        self.sweep = sweep
        self.last_update = time.monotonic()
        self.name = trial_name(self.trial_id)
        self.folder = RunFolder(sweep.trials / self.name)
        self.values = decode(sweep.space, config)
        self.seed = drawn_seed(config, sweep.base)
        earlier = read_outcome(self.folder.root)
        self.outcome = earlier or Outcome(self.name, self.values, config.get(CASE), self.seed)
        if not self.finished:
            self.update_outcome(state="running", error=None, by_hand=False)
        self.pending_validations: deque[Record] = deque()
        self.run: Run | None = None
        self.user_error: UserError | None = None

    def step(self) -> dict[str, Any]:
        """Train on. What fails is written into the outcome, and raised: Tune may try again.

        A `UserError` is raised one step later: what is returned first tells Tune not to try again
        (`run.NoRetryOfUserErrors`).
        """
        if self.user_error is not None:
            raise self.user_error
        if self.finished:
            return self.conclude()
        try:
            return self.advance()
        except Interrupted:
            raise
        except UserError as error:
            self.update_outcome(state="failed", error=reason(error))
            self.user_error = error
            return self.result(done=False) | {USER_ERROR: True}
        except Exception as error:
            self.update_outcome(state="failed", error=reason(error))
            raise

    @property
    def finished(self) -> bool:
        """Whether it was measured; Tune may not know of it after a kill, and the model may be gone."""
        return self.outcome.state == "finished"

    def advance(self) -> dict[str, Any]:
        """Train until the next validation, or to the end."""
        if self.run is None:
            self.run = self.begin(self.values)
        training = True
        while training:
            time.sleep(POLL_S)
            training = self.run.training  # asked before following, so that the last records are not missed
            self.pending_validations.extend(record for record in self.run.follow() if "validation" in record)
            while self.pending_validations:
                self.record_validation(record := self.pending_validations.popleft())
                if record["step"] < self.run.config.train.steps:  # the last one is reported with the scores
                    return self.result(done=False)
        self.end(self.run)
        return self.finish(self.run)

    def cleanup(self) -> None:
        """Let the workers finish their step and save, if they still train."""
        if self.run is not None and self.run.training:
            self.run.stop()
        if self.outcome.state == "running":
            self.update_outcome(state="stopped", by_hand=(self.sweep.trials / STOP).exists())

    def begin(self, values: Values, until: int | None = None) -> Run:
        """Start or resume the run with these values."""
        run = Run(trial_config(self.sweep, self.name, values, self.seed), self.sweep.lease)
        run.check()
        if not run.finished:
            run.prepare()
            run.start(position=0, neighbors=self.sweep.concurrent - 1, until=until)
            self.update_outcome(run_id=run.tracker.run_id)
        return run

    def end(self, run: Run) -> None:
        """Close the run, and note its last validation, which `Run.follow` left out if MLflow had it from before a kill.

        After Ctrl-C on the sweep wait, saved, until Tune ends: it then knows what to resume.
        """
        try:
            run.end()
        except Interrupted:
            self.update_outcome(state="stopped", by_hand=True)
            while (self.sweep.trials / STOP).exists():
                time.sleep(POLL_S)
            raise
        validations = [record for record in read_records(self.folder.metrics) if "validation" in record]
        if validations:
            self.record_validation(validations[-1])

    def record_validation(self, record: Record) -> None:
        """Write a validation into the outcome, for scheduler and table."""
        self.update_outcome(step=record["step"], validation_ce=record[VALIDATION])

    def finish(self, run: Run) -> dict[str, Any]:
        """Measure the trained model, and write the run's report."""
        recovery = measure(self.sweep, run.config)
        show(run.config, run.folder.exported_model, recovery)
        self.update_outcome(state="finished", step=run.config.train.steps, **scores_of(recovery))
        return self.conclude()

    def conclude(self) -> dict[str, Any]:
        """Remove what only training needs."""
        for needed_by_training in (self.folder.checkpoints, self.folder.ray, self.folder.initial_model):
            remove(needed_by_training)
        return self.result(done=True)

    def result(self, done: bool) -> dict[str, Any]:
        """What Tune is told; NaN for what is not known yet. A validation that is no number is the worst."""
        outcome, validation = self.outcome, self.outcome.validation_ce
        if validation is not None and not math.isfinite(validation):
            validation = _WORST
        known = {STEP: outcome.step, VALIDATION: validation, SCORE: score(outcome, self.sweep.space)}
        numbers = known | {"recovery": outcome.recovery, "retention": outcome.retention}
        return {name: float("nan") if value is None else value for name, value in numbers.items()} | {"done": done}

    def update_outcome(self, **changes: Any) -> None:
        """Change fields of the outcome, and write it. Raises UserError where another driver has the sweep by now."""
        if isinstance(self.sweep.lease.path, Path):  # into a bucket the driver puts it, which looks before
            self.sweep.lease.require()
        seconds = self.outcome.seconds + time.monotonic() - self.last_update
        self.last_update = time.monotonic()
        self.outcome = replace(self.outcome, seconds=seconds, **changes)
        self.outcome.write(self.folder.root)


def trial_name(trial_id: str) -> str:
    """The trial's name and folder: Tune's id without what all trials have in common."""
    return f"trial-{trial_id.rpartition('_')[2]}"


def trial_config(sweep: Sweep, name: str, values: Values, seed: int) -> Config:
    """The complete settings of a trial's run: a child of the sweep's in MLflow, reading the shared corpora."""
    base = sweep.base
    with starting_from(sweep.start):
        config = seeded(configure(base, values, name), base, seed)
    tracking = {
        "uri": same_store(base),
        "run_name": f"{sweep.space.name}/{name}",
        "parent": sweep.trials.parent,
        "tags": base.tracking.tags | {"sweep": sweep.space.name, "trial": name},
    }
    return config.model_copy(
        update={
            "name": name,
            "output_dir": origin(sweep.trials),
            "controls": (),
            "demo": None,
            "resume": "auto",
            "corpus": config.corpus.model_copy(update={"cache_dir": str(base.corpora_dir)}),
            "tracking": base.tracking.model_copy(update=tracking),
        }
    )


def measure(sweep: Sweep, config: Config) -> Recovery:
    """Measure the trained model beside the reference ones."""
    folder = RunFolder(config.run_dir)
    lend_items(sweep.items, folder.report)
    return evaluate(
        {DISTILLED: Path(folder.exported_model)},
        config.evaluation,
        folder.report,
        measured=reference_roles(config),
        ray_settings=config.ray,
        sharers=sweep.concurrent,
    )


def scores_of(recovery: Recovery) -> dict[str, Any]:
    """The scores of an outcome, by its fields."""
    figures: dict[str, Any] = {}
    for name, mean in recovery.distilled.items():
        figures |= {name: mean.value if mean else None, f"{name}_ci": list(mean.ci) if mean else None}
    scores = {name: task.models[DISTILLED].score.value for name, task in recovery.tasks.items()}
    exceptions = list(recovery.verdict.exceptions)
    return figures | {"scores": scores, "reasons": recovery.reasons, "exceptions": exceptions}
