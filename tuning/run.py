"""Running the trials of a sweep with Ray Tune: from the beginning, or resumed after an interruption or failures."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig
from ray.tune.experiment import Trial as TuneTrial

from lingu_ray.config import Config
from lingu_ray.errors import UserError
from lingu_ray.interrupt import save_on_interrupt
from lingu_ray.runtime.cluster.capacity import can_hold, check_resources, max_concurrent_runs, uses_gpu, workers
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.lease import Lease
from lingu_ray.runtime.tracking.store_uri import environment
from lingu_ray.storage import cache_folder
from tuning.folder import TUNE_NAME, SweepFolder
from tuning.kept_models import remove_copies, remove_unwanted
from tuning.outcome import failures, read_outcome, read_outcomes, reason
from tuning.population import PopulationTrial
from tuning.progress import SweepProgress
from tuning.search import STEP, USER_ERROR, algorithm, parameters, scheduler
from tuning.space import Space
from tuning.tracking import SweepRun
from tuning.trial import STOP, Sweep, Trial, trial_name

log = logging.getLogger(__name__)

_SAVE_WITHIN_S = 300.0
_POLL_S = 0.5


def run_trials(space: Space, base: Config, folder: SweepFolder, items: Path, tracked: SweepRun, lease: Lease) -> bool:
    """Run the trials that have not ended or have failed; returns whether all have ended (false after Ctrl-C).

    As many at once as the cluster holds the workers of, so that none waits for what another has. Whatever ends this,
    no trial's MLflow run stays RUNNING.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # `SweepProgress` and the report say what it would
    concurrent = concurrent_trials(space, base)
    cache = cache_folder().absolute()
    sweep = Sweep(space, base, folder.trials, items, concurrent, Path.cwd(), lease, cache, environment())
    tuner = _tuner(sweep, folder)
    try:
        with saving_on_interrupt(folder.trials) as interrupted, SweepProgress(space, folder.trials).running():
            results = tuner.fit()
            lease.require()  # else the trials' folders, and what is left in them, are another driver's
            if not interrupted.is_set():
                mark_dead(results, folder.trials)
                remove_unwanted(read_outcomes(folder.trials), space, folder.trials, over=True)
                remove_copies(read_outcomes(folder.trials), folder.tune)
    finally:
        tracked.end_children(read_outcomes(folder.trials))
    return not interrupted.is_set()


def _tuner(sweep: Sweep, folder: SweepFolder) -> tune.Tuner:
    """Ray Tune's own driver of the trials: that of an earlier call, where it left its state, else a new one."""
    space, base = sweep.space, sweep.base
    kind = PopulationTrial if space.pbt else Trial
    trainable = limited(tune.with_parameters(kind, sweep=sweep), sweep.concurrent)
    state = str(folder.tune / TUNE_NAME)
    if tune.Tuner.can_restore(state):
        if failed := failures(read_outcomes(folder.trials)):
            log.info("starting failed trials again: %s", ", ".join(outcome.trial for outcome in failed))
        return tune.Tuner.restore(state, trainable, resume_unfinished=True, resume_errored=True)
    return tune.Tuner(
        trainable,
        param_space=parameters(space, base),
        tune_config=tune.TuneConfig(
            num_samples=space.draws,
            search_alg=algorithm(space, base),
            scheduler=scheduler(space, base),
            max_concurrent_trials=sweep.concurrent if space.algorithm == "optuna" else None,
            time_budget_s=space.hours * 3600 if space.hours else None,
            trial_dirname_creator=_dirname,
        ),
        run_config=tune.RunConfig(
            name=TUNE_NAME,
            storage_path=str(folder.tune),
            verbose=0,
            failure_config=FailureConfig(max_failures=space.retries),
            callbacks=[NoRetryOfUserErrors()],
            checkpoint_config=CheckpointConfig(num_to_keep=3 if space.pbt else None, checkpoint_at_end=False),
        ),
    )


class NoRetryOfUserErrors(tune.Callback):
    """Keeps Tune from trying again what fails with a `UserError`: only the user can correct it."""

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **_: Any
    ) -> None:
        """Called with each result of a trial, the one before a `UserError` included."""
        if result.get(USER_ERROR):
            trial.max_failures = 0


def mark_dead(results: tune.ResultGrid | Sequence[tune.Result], trials: Path) -> None:
    """Mark trials as failed whose process was killed, and could not do so itself; tell of what has no folder."""
    for result in results:
        outcome = read_outcome(folder := trials / Path(result.path).name)
        if outcome is None and STEP in (result.metrics or {}):  # else it was never started
            log.warning(
                "%s is gone, so the report lacks this trial, which Ray Tune does not start again: put it back, or "
                "start the sweep under another name=…",
                folder,
            )
        if outcome is not None and outcome.state == "running":
            error = result.error or RuntimeError("its process ended without an error message")
            replace(outcome, state="failed", error=reason(error)).write(trials / outcome.trial)


def _dirname(trial: TuneTrial) -> str:
    return trial_name(trial.trial_id)


def concurrent_trials(space: Space, base: Config) -> int:
    """How many trials run at once."""
    use_gpu = uses_gpu(base.ray)
    check_resources(workers(base.ray, use_gpu))
    room = max(1, max_concurrent_runs(base.ray, use_gpu))
    if space.concurrent is not None and not can_hold(workers(base.ray, use_gpu, space.concurrent)):
        raise UserError(
            f"concurrent={space.concurrent} trials need more workers than the cluster holds: it has room for {room}. "
            "Leave `concurrent` out, or give trials fewer ray.num_workers"
        )
    return min(space.concurrent or room, space.size)


def limited(trainable: Any, concurrent: int) -> Any:
    """The trainable, of which so many run at once, on this process's node: each takes a share of what Ray has of that.

    Tune itself limits neither a population, nor trials that failed and are started again, and a search keeps the number
    of its first start. Results in a bucket need that node, too: trials write its working folder.
    """
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(concurrent)  # else 200 wait, of which an autoscaler would warn
    return tune.with_resources(trainable, {_this_node(): 1 / (concurrent + 0.5)})


def _this_node() -> str:
    """Ray's resource that only this process's node has."""
    here = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == here)
    return next(name for name in node["Resources"] if re.fullmatch(r"node:[\d.:a-f]+", name))


@contextmanager
def saving_on_interrupt(trials: Path) -> Iterator[threading.Event]:
    """First Ctrl-C, or SIGTERM: let all trials save, then stop Tune. Second: give up at once.

    A trial that a killed driver has left as running is one that was stopped: Tune starts it again, if it knows of it.
    """
    marker, over = trials / STOP, threading.Event()
    marker.unlink(missing_ok=True)
    for outcome in read_outcomes(trials):
        if outcome.state == "running":
            replace(outcome, state="stopped", by_hand=True).write(trials / outcome.trial)

    def save_then_stop() -> None:
        marker.touch()
        give_up = time.monotonic() + _SAVE_WITHIN_S
        while not over.wait(_POLL_S):
            running = [outcome for outcome in read_outcomes(trials) if outcome.state == "running"]
            for outcome in running:
                RunFolder(trials / outcome.trial).stop.touch()
            if not running or time.monotonic() > give_up:  # and again: a Tune that is still starting does not hear it
                os.kill(os.getpid(), signal.SIGUSR1)  # which Tune takes for a request to end

    stopping = threading.Thread(target=save_then_stop, daemon=True)

    def save() -> None:
        print("letting the trials finish their steps and save; Ctrl-C again gives up at once", file=sys.stderr)
        stopping.start()

    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until Tune has its own
    try:
        with save_on_interrupt(save) as interrupted:
            yield interrupted
    finally:
        over.set()
        if stopping.ident is not None:
            stopping.join()  # a signal that comes later would end this process
        signal.signal(signal.SIGUSR1, before)
