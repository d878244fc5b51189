"""One run on the driver's side: its checks, its corpus, its workers, what they record, tracking."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import ray
from ray.train import PreemptionError
from ray.train.torch import TorchTrainer

from lingu_ray.atomic import write_text
from lingu_ray.config import Config
from lingu_ray.config.command_line import load_yaml, to_yaml
from lingu_ray.corpus.build import build_planned
from lingu_ray.corpus.plan import plan_corpus
from lingu_ray.errors import Interrupted, UserError, user_error
from lingu_ray.runtime.alignment.stage import align, alignment_figures, read_alignment
from lingu_ray.runtime.checkpoints.checkpoint import set_aside_damaged, storage_failures_explained
from lingu_ray.runtime.cluster.capacity import (
    check_most_workers,
    uses_gpu,
    wait_for_nodes,
    worker_resources,
    workers,
)
from lingu_ray.runtime.cluster.gpus import check_attention, check_driver, check_gpus
from lingu_ray.runtime.cluster.memory import FOR_TRAINING, ended_by_ray, full_node
from lingu_ray.runtime.failures import Restarts
from lingu_ray.runtime.preparation import check_output, prepare_initial_model, say_passes
from lingu_ray.runtime.ray_train import torch_trainer
from lingu_ray.runtime.resume import (
    check_data,
    check_loaded_models,
    check_settings,
    corpus_since,
    record_corpus,
    trained_steps,
)
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.job_stop import StopWait
from lingu_ray.runtime.run_folder.lease import Lease
from lingu_ray.runtime.run_folder.patient_read import PatientRead
from lingu_ray.runtime.run_folder.records import LoggedSteps, Newest, Record, RecordReader, last_record
from lingu_ray.runtime.run_folder.run_log import waits_of_workers
from lingu_ray.runtime.run_folder.run_store import following, newest_step
from lingu_ray.runtime.tracking.also import check_also
from lingu_ray.runtime.tracking.environment import record_environment
from lingu_ray.runtime.tracking.progress import Progress
from lingu_ray.runtime.tracking.tracker import Tracker
from lingu_ray.runtime.training.precision import Choice, as_started, choose, is_open, with_precision
from lingu_ray.runtime.training.worker import Job
from lingu_ray.storage import remove
from lingu_ray.waiting import FIRST_WORD_S, Wait

POLL_S = 0.25
"""Between looks at what the workers have recorded."""
_FIRST, _NEXT = "the first step", "the next step, validation or export"
_SHOWN_WAITS = 3
_LAST_READ_WAITS_S = (0.5, 1.0, 2.0)
"""Before further attempts to read what the workers wrote last, where storage fails."""

log = logging.getLogger(__name__)


class Run:
    """One run on the driver's side: `check`, then `prepare`, then `start`.

    `lease`: on the run's folder, or on one that it lies in; without it the workers write nothing.
    """

    def __init__(self, config: Config, lease: Lease):
        self.folder, self.lease = RunFolder(config.run_dir), lease
        self.config = as_started(config, self.folder)
        self.progress = Progress(config.name, config.train.steps)
        self.precision: str | None = None
        self.error: BaseException | None = None
        self.thread: threading.Thread | None = None

    @property
    def finished(self) -> bool:
        """Whether the model of the last step was exported."""
        return self.folder.exported_step == self.config.train.steps

    def check(self) -> None:
        """Check all that needs no Ray, and write the initial model. Raises UserError."""
        check_output(self.config)
        check_also(self.config)
        if not self.finished:
            with storage_failures_explained(self.folder.checkpoints):
                set_aside_damaged(self.folder.checkpoints)
        check_settings(self.config, self.folder)
        if self.finished:
            log.info("%s: found, finished before (%d steps)", self.folder.exported_model, self.config.train.steps)
            if self.config.evaluation.tasks:
                check_loaded_models(self.config, self.folder)
            trained = load_yaml(self.folder.config)
            as_trained = {"train": trained.train, "ray": trained.ray}  # these have no part in it any more
            write_text(self.folder.config, to_yaml(self.config.model_copy(update=as_trained)))
            return
        prepare_initial_model(self.config, self.folder)
        self.plan = check_data(plan_corpus(self.config, self.folder.initial_model), self.folder)

    def settle_precision(self, choice: Choice) -> None:
        """Take a precision that was chosen, where the settings leave it open."""
        if is_open(self.config):
            self.config, self.precision = with_precision(self.config, choice.precision), str(choice)

    def prepare(self) -> None:
        """Build the corpus, align the initial model, or find both; record corpus and settings. Raises UserError."""
        settings, use_gpu = self.config.ray, uses_gpu(self.config.ray)
        check_driver(settings, use_gpu)
        check_most_workers(settings, use_gpu)
        wait_for_nodes(workers(settings, use_gpu), settings.wait_for_nodes_s)
        check_gpus(worker_resources(settings, use_gpu), self.config.train.attention, self.config.train.precision)
        if is_open(self.config):
            self.settle_precision(choose(self.config))
        check_attention(self.config.train, use_gpu)
        self.corpus = build_planned(self.plan)
        self.lease.require()  # while nodes started, or rows were read, another may have taken the run over
        record_corpus(self.plan, self.folder)
        say_passes(self.config, self.corpus, corpus_since(self.folder))
        remove(self.folder.stop)
        write_text(self.folder.config, to_yaml(self.config))
        align(self.config, self.folder, self.corpus, self.plan.fingerprint)

    def start(self, position: int, neighbors: int, until: int | None = None) -> None:
        """Start training, in a thread.

        `neighbors` runs train beside this one, and its live line is number `position`. `until`: step at which to save
        and pause; None: the last one, after which the model is exported.
        """
        self.neighbors, self.until = neighbors, until
        self.tracker = Tracker(self.config, self.folder)
        self.tracker.log_environment(record_environment(self.folder.root, self.precision))
        self.tracker.log_figures(alignment_figures(read_alignment(self.folder)))
        if self.config.tracking.system_metrics:
            self.tracker.watch_system()
        self.progress.position = position
        self.progress.say(_starting(self.config))
        restarts = Restarts(self.folder.ray, self.config.ray.max_failures)
        self.restarts = PatientRead("failures of workers", lambda: restarts.new_messages(self._saved_step), self._warn)
        self.stop_wait = StopWait()
        self._warn(self.stop_wait.warning_at_start())
        self._read_from(self.tracker.follow(self.progress.say))
        self._wait_for(_FIRST)
        job = Job(self.config, self.folder.place, self.corpus.folder, self.lease, neighbors, until)
        trainer = torch_trainer(self.config, self.folder, job)
        self.thread = threading.Thread(target=self._train, args=(trainer,), daemon=True)
        self.thread.start()

    @property
    def training(self) -> bool:
        """Whether the workers are running."""
        return self.thread is not None and self.thread.is_alive()

    def _read_from(self, logged: LoggedSteps) -> None:
        """Read what is recorded from now on, also of steps that are trained again; `logged`: those that MLflow has."""
        self.logged, metrics = logged, self.folder.metrics
        last = last_record(metrics) if metrics.exists() else {}
        step = max(logged.training, last.get("step", 0))  # trackers get those that are there by now, too
        reader = RecordReader(metrics, Newest(LoggedSteps(step, step), last.get("time", 0.0)))
        self.records = PatientRead("metrics", reader.new_records, self._warn)
        if step > (saved := self._saved_step()):
            self.progress.say(
                f"trained again: steps {saved + 1} to {step}, of which MLflow keeps the values that it has; "
                f"{metrics.name} and report have the new ones"
            )

    def _is_first(self, record: Record) -> bool:
        """Whether it is the first record of its step."""
        before, self.logged = self.logged, self.logged.with_record(record)
        return self.logged != before

    def follow(self) -> list[Record]:
        """Show the records since the last call, and return the first ones of their steps; where storage fails, a later
        call does."""
        if self.thread is None:
            return []
        waits = () if self.training else _LAST_READ_WAITS_S
        records = self.records.read(waits)
        if records and self.wait.what != _NEXT:
            self._wait_for(_NEXT)  # to start takes longer than any step
        elif records:
            self.wait.came()
        elif self.training:
            self.wait.poll()
        for record in records:
            self.progress.show(record)
            if "loss" in record and record["loss"] is None:
                self._warn(self._skipped(record))
        self._warn(self.stop_wait.warning_after(records))
        for message in self.restarts.read(waits):
            self._warn(message)
            self._wait_for(_FIRST)
        return [record for record in records if self._is_first(record)]

    def stop(self) -> None:
        """Ask the workers to finish the step and save, wait for them, and close live line and tracking."""
        self.folder.stop.touch()
        while self.training:
            self.follow()
            time.sleep(POLL_S)
        self.follow()
        self.progress.close()
        self.tracker.end("KILLED")

    def end(self) -> None:
        """Close live line and tracking of a started run. Raises what ended the training, or `Interrupted`."""
        if self.thread is None:
            return
        self.progress.close()
        if self.error is not None:
            self.tracker.end("FAILED")
            raise _readable(self.error)
        if not self.finished:
            if self.until is not None and trained_steps(self.folder) >= self.until:
                self.tracker.pause()
                return
            self.tracker.end("KILLED")
            raise Interrupted(f"stopped and saved: run the same command again to resume ({self.folder.place})")
        manifest = self.corpus.manifest_file
        self.tracker.log_files(self.folder.config, self.folder.corpus, manifest, self.folder.samples)
        self.tracker.end("FINISHED")

    def _saved_step(self) -> int:
        """The step of the newest checkpoint; those of a run in a bucket come here when the training has ended."""
        place = self.folder.place
        return trained_steps(self.folder) if isinstance(place, Path) else newest_step(place)

    def _wait_for(self, what: str) -> None:
        if what == _FIRST:
            self.earlier_waits = waits_of_workers(self.folder)  # of workers that are gone
        self.wait = Wait(what, self._where_to_look, self.progress.say, first_s=2 * FIRST_WORD_S)  # workers say it first

    def _where_to_look(self) -> str:
        """Where workers say nothing: what they wait for, and what logs there are."""
        waits = [wait for wait in waits_of_workers(self.folder) if wait not in self.earlier_waits][:_SHOWN_WAITS]
        waits = waits or ["workers start, compute or hang (see `ray status`)"]
        return "; ".join([*waits, f"logs are in {self.folder.place}/logs"])

    def _skipped(self, record: Record) -> str:
        settings, step = self.config.train, record["step"]
        rows = self.corpus.positions(step - 1, settings.rows_per_step)
        return (
            f"step {step} skipped, since its loss or gradient is not finite (rows {rows[0]} to {rows[-1]} of "
            f"{self.corpus.folder}); {record['bad_steps']} of train.max_bad_steps={settings.max_bad_steps} so far"
        )

    def _warn(self, warning: str | None) -> None:
        if warning is not None:
            self.progress.say(f"warning: {warning}")

    def _train(self, trainer: TorchTrainer) -> None:
        try:
            with following(self.folder):
                trainer.fit()
        except BaseException as error:
            self.error = error
            if self.neighbors:  # which train on, maybe for hours, before the command ends with this error
                self._warn(f"stopped: {_readable(error)}")


def _starting(config: Config) -> str:
    """The message on what takes a while before the first step; says too where the cluster's GPUs are left alone."""
    most = config.ray.max_workers
    count = f"{config.ray.num_workers} worker{'s' if most > 1 else ''}"
    teachers = "" if not config.uses_teacher else " and teacher" if most == 1 else " and their teachers"
    if uses_gpu(config.ray):
        return f"starting {count}{teachers}, on GPU"
    gpus = ray.cluster_resources().get("GPU", 0)
    why = f": {gpus:g} GPUs do not do for all (ray.num_workers, ray.gpus_per_worker)" if gpus else ""
    return f"starting {count}{teachers}, on CPU{why if config.ray.use_gpu is None else ''}"


def _readable(error: BaseException) -> BaseException:
    """The user's error inside what Ray Train wraps around it, or that it means, if there is one."""
    if isinstance(error, PreemptionError):
        return UserError(
            "nodes were taken away more often than ray.max_preemptions allows: run the same command again to resume"
        )
    if (full := full_node(error)) is not None:
        return ended_by_ray("a worker", FOR_TRAINING, full)
    return user_error(error) or error
