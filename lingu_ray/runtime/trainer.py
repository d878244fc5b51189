"""The driver's side of a run: checks, corpus, Ray Train, progress, tracking."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from transformers import AutoProcessor

from lingu_ray.cli import load_yaml, to_yaml
from lingu_ray.config import Config
from lingu_ray.corpus.build import build_corpus
from lingu_ray.distill.pair import check_pair, check_tokenizers, load_teacher_tokenizer
from lingu_ray.distill.student import prepare_student
from lingu_ray.errors import Interrupted, UserError
from lingu_ray.runtime.cluster import check_resources, room_for_runs, uses_gpu
from lingu_ray.runtime.folder import RunFolder, write_json
from lingu_ray.runtime.metrics import Record, Tail
from lingu_ray.runtime.progress import Progress
from lingu_ray.runtime.tracking import Tracker
from lingu_ray.runtime.worker import Job, train_worker
from lingu_ray.settings import check_begun

_POLL_S = 0.25
_MAY_CHANGE = {
    *("ray", "tracking", "evaluation", "resume", "control", "output_dir", "demo"),
    *(f"teacher.{name}" for name in ("placement", "transport", "look_ahead", "max_restarts")),
    *(f"train.{name}" for name in ("tokens_per_micro_batch", "packing", "gradient_checkpointing")),
    *(f"train.{name}" for name in ("parallelism", "compile")),
}
"""Settings that a run may be continued with, changed: its result does not depend on them, up to rounding."""


def run(config: Config) -> Path:
    """Train one run and return its exported model (see `run_together`)."""
    return run_together([config])[0]


def run_together(configs: Sequence[Config]) -> list[Path]:
    """Train runs and return their exported models: side by side where Ray has room for all, else one after another.

    A finished run is found again, an unfinished one goes on. Needs Ray. Raises UserError for what the user can mend,
    `Interrupted` after Ctrl-C (checkpoints are written).
    """
    runs = [Run(config) for config in configs]
    waiting = [run for run in runs if not run.folder.export.exists()]
    for run in waiting:
        run.prepare()
    if waiting and room_for_runs(waiting[0].config.ray, uses_gpu(waiting[0].config.ray)) >= len(waiting):
        _fit(waiting)
    else:
        for run in waiting:
            _fit([run])
    return [run.folder.export for run in runs]


class Run:
    """One run on the driver's side."""

    def __init__(self, config: Config):
        self.config = config
        self.folder = RunFolder(config.run_dir.resolve())
        self.errors: list[BaseException] = []
        self.thread: threading.Thread | None = None
        _open(config, self.folder)

    def prepare(self) -> None:
        """All checks, the starting point and the corpus."""
        check_resources(self.config.ray, uses_gpu(self.config.ray))
        prepare_start(self.config, self.folder)
        self.corpus = build_corpus(self.config, self.folder.start)
        write_json(self.folder.corpus, {"path": str(self.corpus.folder.resolve())})

    def begin(self, position: int, neighbours: int, until: int | None = None) -> None:
        """Start training, in a thread.

        `neighbours` runs train beside this one, and its live line is number `position`. `until`: step at which to save
        and rest; None: the last one, after which the model is exported.
        """
        self.until = until
        self.tracker = Tracker(self.config, self.folder)
        if self.config.tracking.system_metrics:
            self.tracker.watch_system()
        self.progress = Progress(self.config.name, self.config.train.steps, position)
        self.tail = Tail(self.folder.metrics, self.tracker.newest_steps())  # what is tracked is not told again
        job = Job(self.config, self.folder.root, self.corpus.folder.resolve(), neighbours, until)
        self.thread = threading.Thread(target=self._train, args=(_trainer(self.config, self.folder, job),), daemon=True)
        self.thread.start()

    @property
    def training(self) -> bool:
        """Whether the workers are at it."""
        return self.thread is not None and self.thread.is_alive()

    def follow(self) -> list[Record]:
        """Show, track and return what happened since the last look."""
        if self.thread is None:
            return []
        records = self.tail.new_records()
        for record in records:
            self.progress.show(record)
        self.tracker.log(records)
        return records

    def stop(self) -> None:
        """Let the workers finish the step and save, wait for them, and close live line and tracking."""
        self.folder.stop.touch()
        if self.thread is not None:
            self.thread.join()
        self.follow()
        self.progress.close()
        self.tracker.end("KILLED")

    def end(self) -> None:
        """Close live line and tracking of a run that was begun. Raises what ended the training, or `Interrupted`."""
        if self.thread is None:
            return
        self.progress.close()
        if self.errors:
            self.tracker.end("FAILED")
            raise _readable(self.errors[0])
        if self.until is not None and not self.folder.export.exists():
            self.tracker.rest()
            return
        if not self.folder.export.exists():
            self.tracker.end("KILLED")
            raise Interrupted(f"stopped and saved: run the same command again to go on ({self.folder.root})")
        manifest = self.corpus.folder / "manifest.json"
        self.tracker.log_files(self.folder.config, self.folder.corpus, manifest, self.folder.samples)
        self.tracker.end("FINISHED")

    def _train(self, trainer: TorchTrainer) -> None:
        try:
            trainer.fit()
        except BaseException as error:
            self.errors.append(error)


def _fit(runs: list[Run]) -> None:
    """Train the runs side by side, each in Ray Train; follow their metrics here until all have ended."""
    with _stop_on_interrupt(runs):
        for position, run in enumerate(runs):
            run.begin(position, len(runs) - 1)
        try:
            while any(run.training for run in runs):
                for run in runs:
                    run.follow()
                time.sleep(_POLL_S)
        except KeyboardInterrupt:
            for run in runs:
                run.tracker.end("KILLED")
            raise
    for run in runs:
        run.follow()
    with ExitStack() as ends:  # every run is ended, whatever the others raise
        for run in reversed(runs):
            ends.callback(run.end)


def _trainer(config: Config, folder: RunFolder, job: Job) -> TorchTrainer:
    # Any: `ray.train` types its classes as either generation of its API
    scaling: Any = ScalingConfig(
        num_workers=config.ray.num_workers,
        use_gpu=uses_gpu(config.ray),
        resources_per_worker={"CPU": config.ray.cpus_per_worker},
    )
    failures: Any = FailureConfig(max_failures=config.ray.max_failures)
    name = time.strftime("%Y%m%d-%H%M%S")
    storage: Any = RunConfig(name=name, storage_path=str(folder.ray), failure_config=failures)
    return TorchTrainer(train_worker, train_loop_config=vars(job), scaling_config=scaling, run_config=storage)


def prepare_start(config: Config, folder: RunFolder) -> None:
    """Check the pair and write the run's starting point, once."""
    check_pair(config)
    if not folder.start.exists():
        temporary = folder.start.with_name(".start.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        prepare_student(config, temporary)
        temporary.rename(folder.start)
    check_tokenizers(AutoProcessor.from_pretrained(folder.start).tokenizer, load_teacher_tokenizer(config))


def _open(config: Config, folder: RunFolder) -> None:
    """Make the run's folder, or check that the one there is this run."""
    folder.root.mkdir(parents=True, exist_ok=True)
    folder.stop.unlink(missing_ok=True)
    if folder.config.exists():
        before, now = (one.model_dump(mode="json") for one in (load_yaml(folder.config), config))
        check_begun(folder.root, config.resume, before, now, _MAY_CHANGE)
    folder.config.write_text(to_yaml(config))


@contextmanager
def _stop_on_interrupt(runs: list[Run]) -> Iterator[None]:
    """First Ctrl-C: ask the workers to finish the step and save. Second: give up at once."""

    def ask(*_: object) -> None:
        if runs[0].folder.stop.exists():
            raise KeyboardInterrupt
        for run in runs:
            run.folder.stop.touch()
        runs[0].progress.say("finishing the step and saving a checkpoint; Ctrl-C again gives up at once")

    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)} if in_main_thread else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _readable(error: BaseException) -> BaseException:
    """The user's error inside what Ray Train wraps around it, if there is one."""
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, UserError):
                return UserError(str(getattr(cause, "cause", None) or cause))
            cause = getattr(cause, "cause", None) or cause.__cause__
    return error
