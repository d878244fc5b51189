"""The driver's side of a run: checks, corpus, Ray Train, progress, tracking."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import ray
from ray.train import FailureConfig, PreemptionError, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from lingu_ray.atomic import whole_folder, write_text
from lingu_ray.config import Config, RayConfig
from lingu_ray.config.command_line import load_yaml, to_yaml
from lingu_ray.corpus.build import build_planned, plan_corpus
from lingu_ray.corpus.passes import passes
from lingu_ray.corpus.processor import run_processor
from lingu_ray.corpus.store import Corpus
from lingu_ray.distill.pair import check_tokenizers
from lingu_ray.errors import Interrupted, UserError, user_error
from lingu_ray.interrupt import exit_on_interrupt, save_on_interrupt
from lingu_ray.runtime.alignment.stage import align, alignment_figures, read_alignment
from lingu_ray.runtime.checkpoints.checkpoint import require_space, set_aside_damaged, storage_failures_explained
from lingu_ray.runtime.cluster.capacity import (
    can_hold,
    check_most_workers,
    uses_gpu,
    wait_for_nodes,
    worker_resources,
    workers,
)
from lingu_ray.runtime.cluster.elastic import SaveBeforeResize
from lingu_ray.runtime.cluster.gpus import check_attention, check_driver, check_gpus
from lingu_ray.runtime.cluster.memory import FOR_TRAINING, ended_by_ray, full_node
from lingu_ray.runtime.cluster.no_retry import NoRetryOfUserErrors
from lingu_ray.runtime.cluster.preemption import GIVE_UP_BEFORE_S
from lingu_ray.runtime.failures import NoteFailures, Restarts
from lingu_ray.runtime.models.load import (
    check_pair,
    check_weights,
    initial_student,
    load_teacher_tokenizer,
    prepare_student,
)
from lingu_ray.runtime.rehearsal import rehearse_export, rehearse_teacher
from lingu_ray.runtime.resume import check_data, check_models, check_settings, record_corpus, trained_steps
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.job_stop import StopWait
from lingu_ray.runtime.run_folder.lease import Lease
from lingu_ray.runtime.run_folder.patient_read import PatientRead
from lingu_ray.runtime.run_folder.records import Record, RecordReader
from lingu_ray.runtime.run_folder.run_log import run_log
from lingu_ray.runtime.run_folder.run_store import following, put_initial_model, writing_to
from lingu_ray.runtime.tracking.also import check_also
from lingu_ray.runtime.tracking.environment import record_environment
from lingu_ray.runtime.tracking.progress import Progress
from lingu_ray.runtime.tracking.store import check_store, tracking_uri
from lingu_ray.runtime.tracking.tracker import Tracker
from lingu_ray.runtime.training.precision import Choice, as_started, choose, is_open, with_precision
from lingu_ray.runtime.training.worker import Job, train_worker
from lingu_ray.storage import check_writable, remove

_POLL_S = 0.25
_LAST_READ_WAITS_S = (0.5, 1.0, 2.0)
"""Before further attempts to read what the workers wrote last, where storage fails."""
MANY_PASSES = 5
"""Over a source; a run that makes more is warned."""

log = logging.getLogger(__name__)


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


def run_together(runs: Sequence[Run]) -> list[Path | str]:
    """Train checked runs and return where their exported models are: side by side where Ray has room for all, else one
    by one.

    A finished run is not trained again, an unfinished one is resumed. Ray must be running.

    Raises:
        UserError: something that the user can fix.
        Interrupted: Ctrl-C; checkpoints are written.
    """
    waiting = [run for run in runs if not run.finished]
    with ExitStack() as logs:
        for run in waiting:
            logs.enter_context(run_log(run.folder, run.config.name))
        _train_all(waiting)
    return [run.folder.exported_model for run in runs]


def _train_all(runs: Sequence[Run]) -> None:
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
    if together:
        _fit(runs)
    else:
        for run in runs:
            _fit([run])


class Run:
    """One run on the driver's side: `check`, then `prepare`, then `start`.

    `lease`: on the run's folder, or on one that it lies in; without it the workers write nothing.
    """

    def __init__(self, config: Config, lease: Lease):
        self.folder, self.lease = RunFolder(config.run_dir), lease
        self.config = as_started(config, self.folder)
        self.precision: str | None = None
        self.errors: list[BaseException] = []
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
        _say_passes(self.config, self.corpus)
        record_corpus(self.plan, self.folder)
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
        self.progress = Progress(self.config.name, self.config.train.steps, position)
        self.progress.say(_starting(self.config))
        restarts = Restarts(self.folder.ray, self.config.ray.max_failures)
        self.restarts = PatientRead(
            "failures of workers", lambda: restarts.new_messages(lambda: trained_steps(self.folder)), self._warn
        )
        self.stop_wait = StopWait()
        self._warn(self.stop_wait.warning_at_start())
        logged = self.tracker.follow(self.progress.say)
        reader = RecordReader(self.folder.metrics, logged)  # only new ones are shown
        self.records = PatientRead("metrics", reader.new_records, self._warn)
        job = Job(self.config, self.folder.place, self.corpus.folder, self.lease, neighbors, until)
        self.thread = threading.Thread(target=self._train, args=(_trainer(self.config, self.folder, job),), daemon=True)
        self.thread.start()

    @property
    def training(self) -> bool:
        """Whether the workers are running."""
        return self.thread is not None and self.thread.is_alive()

    def follow(self) -> list[Record]:
        """Show and return the records since the last call; where storage fails, a later call does."""
        if self.thread is None:
            return []
        waits = () if self.training else _LAST_READ_WAITS_S
        records = self.records.read(waits)
        for record in records:
            self.progress.show(record)
            if "loss" in record and record["loss"] is None:
                self._warn(self._skipped(record))
        self._warn(self.stop_wait.warning_after(records))
        for message in self.restarts.read(waits):
            self._warn(message)
        return records

    def stop(self) -> None:
        """Ask the workers to finish the step and save, wait for them, and close live line and tracking."""
        self.folder.stop.touch()
        if self.thread is not None:
            self.thread.join()
        self.follow()
        self.progress.close()
        self.tracker.end("KILLED")

    def end(self) -> None:
        """Close live line and tracking of a started run. Raises what ended the training, or `Interrupted`."""
        if self.thread is None:
            return
        self.progress.close()
        if self.errors:
            self.tracker.end("FAILED")
            raise _readable(self.errors[0])
        if self.until is not None and not self.finished:
            self.tracker.pause()
            return
        if not self.finished:
            self.tracker.end("KILLED")
            raise Interrupted(f"stopped and saved: run the same command again to resume ({self.folder.place})")
        manifest = self.corpus.manifest_file
        self.tracker.log_files(self.folder.config, self.folder.corpus, manifest, self.folder.samples)
        self.tracker.end("FINISHED")

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
            self.errors.append(error)
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


def _fit(runs: Sequence[Run]) -> None:
    """Train the runs side by side, each in Ray Train; follow their metrics here until all have ended."""

    def save() -> None:
        for run in runs:
            run.folder.stop.touch()
        runs[0].progress.say("finishing the step and saving a checkpoint; Ctrl-C again gives up at once")

    with save_on_interrupt(save):
        for position, run in enumerate(runs):
            run.start(position, len(runs) - 1)
        try:
            while any(run.training for run in runs):
                for run in runs:
                    run.follow()
                time.sleep(_POLL_S)
        except KeyboardInterrupt:
            for run in runs:
                run.tracker.end("KILLED", within_s=1)
            raise
    for run in runs:
        run.follow()
    with ExitStack() as ends:  # every run is ended, whatever the others raise
        for run in reversed(runs):
            ends.callback(run.end)


def _trainer(config: Config, folder: RunFolder, job: Job) -> TorchTrainer:
    # Any: `ray.train` types its classes as either generation of its API
    failures = _failures(config.ray)
    name = time.strftime("%Y%m%d-%H%M%S")
    callbacks: Any = [NoRetryOfUserErrors(), NoteFailures(folder.ray), SaveBeforeResize()]
    storage: Any = RunConfig(name=name, storage_path=str(folder.ray), failure_config=failures, callbacks=callbacks)
    return TorchTrainer(
        train_worker,
        train_loop_config=vars(job),
        torch_config=collectives(config.ray),
        scaling_config=scaling(config.ray, uses_gpu(config.ray)),
        run_config=storage,
    )


def scaling(settings: RayConfig, use_gpu: bool) -> Any:
    """What Ray Train is told of the workers: their number, and what each gets where."""
    fewest, most = settings.min_workers, settings.max_workers
    config: Any = ScalingConfig
    return config(
        num_workers=most if fewest == most else (fewest, most),
        use_gpu=use_gpu,
        resources_per_worker=worker_resources(settings, use_gpu),
        placement_strategy=settings.placement,
        elastic_resize_monitor_interval_s=settings.check_every_s,
    )


def collectives(settings: RayConfig) -> TorchConfig:
    """How the workers talk: NCCL wants a GPU for each, so those that share one use gloo."""
    return TorchConfig(backend="gloo" if settings.shares_gpus else None)


def _failures(settings: RayConfig) -> Any:
    """How often Ray Train starts workers again: after failures, and, counted apart, when nodes were taken away."""
    preemptions = -1 if settings.max_preemptions is None else settings.max_preemptions
    config: Any = FailureConfig  # typed as either generation of the API, too
    return config(
        max_failures=settings.max_failures, max_preemption_failures=preemptions, preemption_grace_s=GIVE_UP_BEFORE_S
    )


def prepare_initial_model(config: Config, folder: RunFolder) -> None:
    """Check the pair and write the run's initial model, once."""
    check_pair(config)
    check_weights(config)
    check_models(config, folder)
    if not folder.initial_model.exists():
        if config.uses_teacher:
            rehearse_teacher(config.teacher)
        with whole_folder(folder.initial_model, keep_existing=True) as temporary:
            prepare_student(config, temporary)
            _rehearse(config, temporary, folder)
        put_initial_model(folder)
    processor: Any = run_processor(folder.initial_model, config.student.trust_remote_code)
    check_tokenizers(processor.tokenizer, load_teacher_tokenizer(config.teacher))


def _rehearse(config: Config, initial_model: Path, folder: RunFolder) -> None:
    """Try the export, and check that the disk has room for it and for the weights of a checkpoint."""
    processor = run_processor(initial_model, config.student.trust_remote_code)
    needed = rehearse_export(initial_student(config, initial_model), processor)
    if isinstance(folder.place, Path):  # else they are not written here
        require_space(folder.root, needed, "a checkpoint and the export")


def check_output(config: Config) -> None:
    """Refuse folders that cannot be written, or whose content is lost after the run.

    Raises:
        UserError: `output_dir` lies in the copy of a job's working directory, which Ray removes, or is not writable; it
            is in a bucket, where no MLflow store can be, and none is named.
    """
    tracking_uri(config)
    for setting, path in (("output_dir", config.output_dir), ("corpus.cache_dir", config.corpora_dir)):
        if isinstance(path, str):
            check_writable(path)
            continue
        if "working_dir_files" in path.parts:
            raise UserError(
                f"{setting}={path} lies in the copy of the working directory that Ray made for this job and removes "
                f"after it: give an absolute {setting}=/…, on storage that all nodes share"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise UserError(f"{setting}={path}: cannot be written: {error}") from error


def _say_passes(config: Config, corpus: Corpus) -> None:
    """Log how often the run passes over each source, with a warning where that is often."""
    seen = passes(corpus.manifest, config.train.steps * config.train.rows_per_step)
    text = ", ".join(f"{name} {count:.2f}" for name, count in seen.items())
    log.info(
        "%s: %d steps of %d rows; passes over %s", *(config.name, config.train.steps), config.train.rows_per_step, text
    )
    often = [name for name, count in seen.items() if count > MANY_PASSES]
    if often:
        log.warning(
            "%s: more than %d passes over %s: its rows will be memorized. Lower train.steps or the source's "
            "weight, or give more data",
            *(config.name, MANY_PASSES, ", ".join(often)),
        )


def _readable(error: BaseException) -> BaseException:
    """The user's error inside what Ray Train wraps around it, or that it means, if there is one."""
    if isinstance(error, PreemptionError):
        return UserError(
            "nodes were taken away more often than ray.max_preemptions allows: run the same command again to resume"
        )
    if (full := full_node(error)) is not None:
        return ended_by_ray("a worker", FOR_TRAINING, full)
    return user_error(error) or error
