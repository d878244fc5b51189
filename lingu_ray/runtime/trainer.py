"""The driver's side of a run: checks, corpus, Ray Train, progress, tracking."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from transformers import AutoProcessor

from lingu_ray.cli import load_yaml, to_yaml
from lingu_ray.config import Config
from lingu_ray.corpus.build import build_corpus
from lingu_ray.corpus.store import Corpus
from lingu_ray.distill.pair import check_pair, check_tokenizers, load_teacher_tokenizer
from lingu_ray.distill.student import prepare_student
from lingu_ray.errors import Interrupted, UserError
from lingu_ray.runtime.cluster import check_resources, uses_gpu
from lingu_ray.runtime.folder import RunFolder, write_json
from lingu_ray.runtime.metrics import Tail
from lingu_ray.runtime.progress import Progress
from lingu_ray.runtime.tracking import Tracker
from lingu_ray.runtime.worker import Job, train_worker

_POLL_S = 0.25
_MAY_CHANGE = ("ray", "tracking", "evaluation", "resume", "control", "output_dir", "demo")
"""Settings that a run may be continued with, changed."""


def run(config: Config) -> Path:
    """Train one run and return its exported model; a finished run is found again, an unfinished one goes on.

    Needs Ray. Raises UserError for what the user can mend, `Interrupted` after Ctrl-C (a checkpoint is written).
    """
    folder = RunFolder(config.run_dir.resolve())
    _open(config, folder)
    if folder.export.exists():
        return folder.export
    check_resources(config.ray, uses_gpu(config.ray))
    prepare_start(config, folder)
    corpus = build_corpus(config, folder.start)
    write_json(folder.corpus, {"path": str(corpus.folder.resolve())})
    tracker = Tracker(config, folder)
    try:
        _fit(config, folder, corpus, tracker)
    except BaseException as error:
        tracker.end("KILLED" if isinstance(error, Interrupted | KeyboardInterrupt) else "FAILED")
        raise
    tracker.log_files(folder.config, folder.corpus, corpus.folder / "manifest.json", folder.samples)
    tracker.end("FINISHED")
    return folder.export


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
        if config.resume == "never":
            raise UserError(f"{folder.root} exists and resume=never: choose another name, or remove the folder")
        differences = _differences(load_yaml(folder.config), config)
        if differences:
            raise UserError(
                f"{folder.root} was begun with other settings, and cannot be gone on with:\n"
                + "\n".join(f"  {line}" for line in differences)
                + "\nChoose another name=…, or remove the folder to begin anew."
            )
    folder.config.write_text(to_yaml(config))


def _differences(before: Config, now: Config) -> list[str]:
    """One line a setting that differs and may not."""
    lines: list[str] = []

    def compare(key: str, a: object, b: object) -> None:
        if isinstance(a, dict) and isinstance(b, dict):
            for name in a | b:
                compare(f"{key}.{name}" if key else name, a.get(name), b.get(name))
        elif a != b:
            lines.append(f"{key}: {a} before, {b} now")

    excluded = set(_MAY_CHANGE)
    compare("", before.model_dump(mode="json", exclude=excluded), now.model_dump(mode="json", exclude=excluded))
    return lines


def _fit(config: Config, folder: RunFolder, corpus: Corpus, tracker: Tracker) -> None:
    """Run Ray Train in a thread; show and track its metrics here until it ends."""
    # Any: `ray.train` types its classes as either generation of its API
    scaling: Any = ScalingConfig(
        num_workers=config.ray.num_workers,
        use_gpu=uses_gpu(config.ray),
        resources_per_worker={"CPU": config.ray.cpus_per_worker},
    )
    failures: Any = FailureConfig(max_failures=config.ray.max_failures)
    storage: Any = RunConfig(name=time.strftime("%Y%m%d-%H%M%S"), storage_path=str(folder.ray), failure_config=failures)
    job = vars(Job(config, folder.root, corpus.folder.resolve()))
    trainer = TorchTrainer(train_worker, train_loop_config=job, scaling_config=scaling, run_config=storage)
    errors: list[BaseException] = []
    thread = threading.Thread(target=_collect, args=(trainer, errors), daemon=True)
    progress, tail = Progress(config.name, config.train.steps), Tail(folder.metrics)
    with _stop_on_interrupt(folder, progress):
        thread.start()
        while thread.is_alive():
            _follow(tail, progress, tracker)
            thread.join(_POLL_S)
        _follow(tail, progress, tracker)
    progress.close()
    if errors:
        raise _readable(errors[0])
    if not folder.export.exists():
        raise Interrupted(f"stopped and saved: run the same command again to go on ({folder.root})")


def _collect(trainer: TorchTrainer, errors: list[BaseException]) -> None:
    try:
        trainer.fit()
    except BaseException as error:
        errors.append(error)


def _follow(tail: Tail, progress: Progress, tracker: Tracker) -> None:
    records = tail.new_records()
    for record in records:
        progress.show(record)
    tracker.log(records)


@contextmanager
def _stop_on_interrupt(folder: RunFolder, progress: Progress) -> Iterator[None]:
    """First Ctrl-C: ask the workers to finish the step and save. Second: give up at once."""

    def ask(*_: object) -> None:
        if folder.stop.exists():
            raise KeyboardInterrupt
        folder.stop.touch()
        progress.say("finishing the step and saving a checkpoint; Ctrl-C again gives up at once")

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
