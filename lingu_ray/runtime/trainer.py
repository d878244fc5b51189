"""Runs trained, by themselves or side by side: checked, prepared, followed until all have ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from lingu_ray.config import Config
from lingu_ray.corpus.store import Corpus
from lingu_ray.errors import Interrupted
from lingu_ray.interrupt import exit_on_interrupt, save_on_interrupt
from lingu_ray.runtime.cluster.capacity import can_hold, uses_gpu, wait_for_nodes, workers
from lingu_ray.runtime.preparation import check_output
from lingu_ray.runtime.resume import recorded_corpus, tell_changed_data
from lingu_ray.runtime.run import POLL_S, Run
from lingu_ray.runtime.run_folder.lease import Lease
from lingu_ray.runtime.run_folder.run_log import run_log
from lingu_ray.runtime.run_folder.run_store import writing_to
from lingu_ray.runtime.tracking.store import check_store
from lingu_ray.runtime.tracking.store_uri import tracking_uri
from lingu_ray.runtime.training.precision import Choice, choose, is_open


def run(config: Config) -> Path | str:
    """Train one run and return its exported model (see `run_together`)."""
    check_output(config)
    check_store(tracking_uri(config), config.tracking.experiment)
    with writing_to(config.run_place) as lease:
        return run_together(checked([config], lease))[0]


def checked(configs: Sequence[Config], lease: Lease) -> list[Run]:
    """The runs, after all checks that need no Ray: folder, pair, data, outputs.

    `lease`: on the folder that all of them lie in.

    Raises:
        UserError: something that the user can fix.
    """
    runs = [Run(config, lease) for config in configs]
    share_precision(runs)
    for run in runs:
        run.check()
    return runs


def share_precision(runs: Sequence[Run]) -> None:
    """Where one of the runs has its precision from before, those that leave it open take the same."""
    if known := [run.config.train.precision for run in runs if not is_open(run.config)]:
        for run in runs:
            run.settle_precision(Choice(known[0], "as the run beside it"))


def run_together(runs: Sequence[Run], look: Callable[[Corpus], None] | None = None) -> list[Path | str]:
    """Train checked runs and return where their exported models are: side by side where Ray has room for all, else one
    by one.

    A finished run is not trained again, an unfinished one is resumed. Ray must be running.

    Args:
        runs: they train on one corpus.
        look: is shown it before the training; where all are finished, too, if it is still there.

    Raises:
        UserError: something that the user can fix.
        Interrupted: Ctrl-C; checkpoints are written.
    """
    waiting = [run for run in runs if not run.finished]
    with ExitStack() as logs:
        for run in waiting:
            logs.enter_context(run_log(run.folder, run.config.name))
        _train_all(waiting, look)
    if not waiting:
        tell_changed_data(runs[0].config, runs[0].folder)
        if look is not None and (corpus := recorded_corpus(runs[0].folder)) is not None:
            look(corpus)
    return [run.folder.exported_model for run in runs]


def _train_all(runs: Sequence[Run], look: Callable[[Corpus], None] | None) -> None:
    if not runs:
        return
    with exit_on_interrupt():
        settings = runs[0].config.ray
        of_all = workers(settings, uses_gpu(settings), len(runs))
        if together := can_hold(of_all):
            wait_for_nodes(of_all, settings.wait_for_nodes_s)
        if is_open(runs[0].config):
            choice = choose(runs[0].config)
            for run in runs:
                run.settle_precision(choice)
        for run in runs:
            run.prepare()
        if look is not None:
            look(runs[0].corpus)
    if together:
        _fit(runs)
    else:
        for run in runs:
            _fit([run])


def _fit(runs: Sequence[Run]) -> None:
    """Train the runs side by side, each in Ray Train; follow their metrics here until all have ended.

    Raises:
        Interrupted: Ctrl-C, also where it came as the last step or the export was made, which are completed.
    """

    def save() -> None:
        for run in runs:
            run.folder.stop.touch()
        runs[0].progress.say("finishing the step and saving a checkpoint; Ctrl-C again gives up at once")

    with save_on_interrupt(save) as asked:
        for position, run in enumerate(runs):
            run.start(position, len(runs) - 1)
        try:
            while any(run.training for run in runs):
                for run in runs:
                    run.follow()
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            for run in runs:
                run.tracker.end("KILLED", within_s=1)
            raise
    for run in runs:
        run.follow()
    with ExitStack() as ends:  # every run is ended, whatever the others raise
        for run in reversed(runs):
            ends.callback(run.end)
    if asked.is_set():
        raise Interrupted(f"stopped, with the training complete: run the same command again ({runs[0].folder.place})")
