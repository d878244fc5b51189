"""The training loop, which every Ray Train worker executes."""

from __future__ import annotations

import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ray.train
import torch
from safetensors import SafetensorError

from lingu_ray.atomic import write_json
from lingu_ray.config import Config
from lingu_ray.corpus.batch import MicroBatch
from lingu_ray.corpus.encode import Encoder, Sample
from lingu_ray.corpus.processor import run_processor
from lingu_ray.corpus.read import StepReader
from lingu_ray.corpus.store import Corpus
from lingu_ray.distill.student import Student
from lingu_ray.distill.teacher import TeacherClient
from lingu_ray.errors import UserError
from lingu_ray.runtime.alignment.stage import load_alignment
from lingu_ray.runtime.checkpoints.checkpoint import CheckpointState, require_space
from lingu_ray.runtime.checkpoints.checkpoint_writer import CheckpointWriter
from lingu_ray.runtime.checkpoints.contents import checkpoint_bytes, load_checkpoint
from lingu_ray.runtime.cluster.connect import encoding_threads, threads
from lingu_ray.runtime.cluster.elastic import save_asked, wait_to_be_ended
from lingu_ray.runtime.cluster.memory import FOR_TRAINING, explained
from lingu_ray.runtime.cluster.preemption import node_is_leaving, preempted
from lingu_ray.runtime.models.export import export_model
from lingu_ray.runtime.models.load import export_dtype, initial_student, load_student
from lingu_ray.runtime.resume import STUDENT, TEACHER, check_loaded_models
from lingu_ray.runtime.run_folder.lease import Lease
from lingu_ray.runtime.run_folder.records import JsonLines, Record
from lingu_ray.runtime.run_folder.run_log import run_log
from lingu_ray.runtime.teacher.teachers import make_teacher
from lingu_ray.runtime.tracking.metrics import MetricsFile
from lingu_ray.runtime.training.distributed import (
    all_sum,
    clip_gradients,
    is_main_process,
    sum_gradients,
    zero_gradients,
)
from lingu_ray.runtime.training.on_policy import OnPolicy
from lingu_ray.runtime.training.optimizer import make_optimizer, set_learning_rates, trained_parameters
from lingu_ray.runtime.training.precision import use_tensor_cores
from lingu_ray.runtime.training.prepare import between_steps, prepare
from lingu_ray.runtime.training.step import MicroBatches
from lingu_ray.runtime.training.validation import Validation, answer_samples, sample_rows
from lingu_ray.runtime.training.worker_store import WorkerStore, opened
from lingu_ray.storage import origin

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What the driver hands to the workers; paths are absolute and on storage that all nodes share, or in a bucket.

    `lease`: the driver's, on the run's folder or one that it lies in. `neighbors`: runs that train beside this one and
    share the cores. `until`: step after which to save and pause; None: train to the end and export.
    """

    config: Config
    place: Path | str
    corpus_dir: Path | str
    lease: Lease
    neighbors: int
    until: int | None = None


class Step(NamedTuple):
    """What the reader gives of a step: its samples, of which micro-batches are still to be made, or those."""

    samples: list[Sample]
    batches: list[MicroBatch]


def train_worker(job: dict[str, Any]) -> None:
    """Entry point of a worker: build everything, resume from the newest checkpoint, train, export."""
    todo = Job(**job)
    rank = ray.train.get_context().get_world_rank()
    with (
        opened(todo.place, rank, todo.lease) as store,
        run_log(store.folder, todo.config.name, rank),
        explained(f"worker {rank}", FOR_TRAINING),
    ):
        Worker(todo, store).run()


class Worker:
    """One data-parallel worker with its own teacher."""

    def __init__(self, job: Job, store: WorkerStore):
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.config, self.store, self.folder = job.config, store, store.folder
        self.last_step = min(self.config.train.steps, job.until or self.config.train.steps)
        self.dtype = torch.bfloat16 if self.config.train.precision == "bf16" else torch.float32
        self.device = ray.train.torch.get_device()
        self.sharers = context.get_local_world_size() * (1 + job.neighbors)
        self.threads = threads(self.config.ray, self.sharers)
        torch.set_num_threads(self.threads)
        use_tensor_cores(self.device)

        teacher = self._load_teacher()  # first, so that an actor starts while the rest is loaded
        self.corpus = Corpus(job.corpus_dir)
        self.processor = run_processor(self.folder.initial_model, self.config.student.trust_remote_code)
        self.encoder = Encoder(self.processor, self.config.corpus.max_length, self.dtype)
        self.student = self._load_student()
        self.export_dtype = export_dtype(self.config.student)  # now, while the student's files are there
        self.optimizer = make_optimizer(self.student, self.config.train)
        self.parameters = trained_parameters(self.optimizer)
        self.micro_batches = MicroBatches(self.config, self.student, teacher, self.device)
        self.on_policy = OnPolicy(self.config, self.student, self.encoder)
        self.held_out = self.corpus.validation()
        self.validation = Validation(self.config, self.held_out, self.encoder, self.device, self.rank, self.world)
        self.metrics = MetricsFile(self.folder.metrics, self.config, self.corpus)
        self.samples = JsonLines(self.folder.samples)
        self.bad_steps = self.saved_step = 0
        settings = self.config.train
        self.checkpoints = CheckpointWriter(
            *(self.folder.checkpoints, self.student.model, self.optimizer),
            *(settings.checkpoint, settings.keep_last, self._saved, (self.folder.metrics, self.folder.samples)),
        )

    def run(self) -> None:
        """Train from the newest checkpoint to the last step of this job, or until asked to stop."""
        settings = self.config.train
        step = self._restore()
        log.info("%d workers; on %s, %d threads; steps done: %d", self.world, self.device, self.threads, step)
        if is_main_process() and step < self.last_step:
            needed = checkpoint_bytes(self.student.model, self.optimizer)
            needed += sum(p.numel() for p in self.student.model.parameters()) * self.export_dtype.itemsize
            require_space(self.folder.checkpoints, needed, "a checkpoint and the export")
        reader = StepReader(
            self.corpus,
            self.encoder,
            self._make,
            settings.rows_per_step,
            self.rank,
            self.world,
            start_step=step,
            steps=settings.steps,
            threads=encoding_threads(self.config.ray, self.device.type == "cuda", self.sharers),
        )
        with reader:
            while step < self.last_step:
                stop, save = self._train_step(step, reader)
                self.checkpoints.poll()
                step += 1
                validation_ce = self._validate_and_sample(step, reader.pool, last=step == self.last_step)
                leaving = node_is_leaving()
                ending = stop or save or leaving or step == self.last_step
                if ending or step % settings.checkpoint_every == 0:
                    self._save(CheckpointState(step, validation_ce, self.bad_steps), wait=ending)
                if stop and step < self.last_step:
                    return
                if leaving and step < self.last_step:
                    raise preempted()
                if save and step < self.last_step:
                    wait_to_be_ended()
        if step == settings.steps:
            self._export()

    def _export(self) -> None:
        self._require_lease()
        settings = self.config.train
        dtype, folder = self.export_dtype, self.folder.export
        try:
            seconds = export_model(self.student.model, self.processor, dtype, folder, settings.lora)
        except (UserError, OSError, SafetensorError) as error:
            raise UserError(
                f"{error}\nThe training is complete, and its checkpoints are in {origin(self.folder.checkpoints)}: the "
                "same command tries the export alone again"
            ) from error
        log.info("exported to %s", self.folder.exported_model)
        if is_main_process():
            self.store.put_export()
            write_json(self.folder.exported, {"step": settings.steps, "verified_in_s": round(seconds, 1)})

    def _make(self, samples: list[Sample]) -> Step:
        """Make micro-batches of a step's samples, in a thread of the reader, ready to be copied to a GPU.

        Samples stay as they are where the student may answer them first.
        """
        if self.config.distill.on_policy:
            return Step(samples, [])
        batches = self.micro_batches.make(samples, self.encoder.pad_id)
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):  # a thread's own is the first one that it sees
                batches = [batch.pinned() for batch in batches]
        return Step([], batches)

    def _train_step(self, step: int, reader: StepReader[Step]) -> tuple[bool, bool]:
        """One optimizer step; returns whether the run was asked to stop, and whether to save."""
        begin = time.perf_counter()
        batches, data_wait = self._next(step, reader)
        zero_gradients(self.parameters)
        factor = set_learning_rates(self.optimizer, step, self.config.train)
        plans = [self.micro_batches.plan(batch) for batch in batches]
        weights = self.micro_batches.weights(self.config.train.progress(step), batches, plans)
        sums = self.micro_batches.run(batches, plans, weights)
        sum_gradients(self.parameters)
        norm = clip_gradients(self.parameters, self.config.train.grad_clip)
        read = sum(batch.tokens for batch in batches)
        asked = [is_main_process() and self.folder.stop.exists(), save_asked.is_set()]
        loss, ce, kd, kv_bytes, read, waits, teacher_waits, stop, save = all_sum(
            [sums.loss, sums.ce, sums.kd, sums.kv_bytes, read, data_wait, sums.teacher_wait, *asked], self.device
        )
        good = math.isfinite(norm) and math.isfinite(loss)  # the same on all workers
        if good:
            self.optimizer.step()
        else:
            self._skip(step)
        seconds = time.perf_counter() - begin
        self._require_lease()
        if is_main_process():
            of_loss = {
                "loss": loss,
                "ce": ce / weights.ce_tokens if weights.ce_tokens else None,
                "kd": kd / weights.kd_tokens if weights.kd_tokens else None,
                "grad_norm": norm,
            }
            self.metrics.append(
                {
                    "step": step + 1,
                    **(of_loss if good else dict.fromkeys(of_loss)),
                    "lr": factor * self.config.train.learning_rates.shown,
                    "bad_steps": self.bad_steps,
                    **weights.as_record(),
                    "kv_bytes": int(kv_bytes),
                    "tokens_per_s": read / seconds,
                    "data_wait": waits / self.world / seconds,
                    "teacher_wait": teacher_waits / self.world / seconds,
                    "workers": self.world,
                    "step_s": seconds,
                    "time": time.time(),
                }
            )
        return stop > 0, save > 0

    def _next(self, step: int, reader: StepReader[Step]) -> tuple[list[MicroBatch], float]:
        """The step's micro-batches, with the student's own answers where it gives some, and the wait for data (s)."""
        begin = time.perf_counter()
        samples, batches = next(reader)
        data_wait = time.perf_counter() - begin
        torch.manual_seed(hash((self.config.seed, step, self.rank)) & 0x7FFFFFFF)  # of dropout
        if self.config.distill.on_policy:
            with between_steps(self.student, self.micro_batches.autocast()):
                samples = self.on_policy.answer(samples, step)
            batches = self.micro_batches.make(samples, self.encoder.pad_id)
        return batches, data_wait

    def _skip(self, step: int) -> None:
        """Count a step whose loss or gradient is not finite; past the limit save what was trained before it, and stop.

        Raises:
            UserError: it is one too many.
        """
        if self.bad_steps < self.config.train.max_bad_steps:
            self.bad_steps += 1
            return
        if 0 < self.saved_step < step:  # before its first checkpoint a run belongs to no settings, and stays so
            self._save(CheckpointState(step, None, self.bad_steps), wait=True)
        positions = self.corpus.positions(step, self.config.train.rows_per_step)
        sources = sorted({row.source for row in self.corpus.rows(positions)})
        elsewhere = ", under another name=…, for this run has checkpoints" if self.saved_step else ""
        raise UserError(
            f"step {step + 1}: its loss or gradient is not finite; steps skipped for that before: {self.bad_steps} "
            f"(train.max_bad_steps). It reads rows {positions[0]} to {positions[-1]} of {self.corpus.folder}, of "
            f"source {', '.join(sources)}. Raise train.max_bad_steps; or lower train.learning_rates or distill.w_kd, "
            f"or use train.precision=fp32{elsewhere}"
        )

    def _validate_and_sample(self, step: int, pool: ThreadPoolExecutor, last: bool) -> float | None:
        """Validate and sample where `step` is one to do so; returns the mean validation CE of this step."""
        settings, validation_ce = self.config.train, None
        if self.validation.rows and (last or (settings.validate_every and step % settings.validate_every == 0)):
            with between_steps(self.student, self.micro_batches.autocast()):
                record: Record = self.validation.run(self.micro_batches, pool)
            validation_ce = record["validation_ce"]
            if is_main_process():
                self.metrics.append({"step": step, **record, "time": time.time()})
            ray.train.report({"step": step, "validation_ce": validation_ce})
        if last or (settings.sample_every and step % settings.sample_every == 0):
            rows = sample_rows(self.held_out, settings.samples) if is_main_process() else []
            with between_steps(self.student, self.micro_batches.autocast()):
                for record in answer_samples(self.student, self.encoder, rows):
                    self.samples.append({"step": step, **record})
        return validation_ce

    def _require_lease(self) -> None:
        """Write no more where another driver has taken the run over. Raises UserError in the process that writes."""
        if is_main_process():
            self.store.require_lease()

    def _restore(self) -> int:
        self._require_lease()
        self.store.fetch_checkpoints()
        state = load_checkpoint(self.folder.checkpoints, self.student.model, self.optimizer)
        step = self.saved_step = state.step if state else 0
        self.bad_steps = state.bad_steps if state else 0
        self._require_lease()
        if is_main_process():
            self.metrics.drop_after(step)
            self.metrics.start()
            self.samples.drop_after(step)
        return step

    def _save(self, state: CheckpointState, wait: bool) -> None:
        """Write a checkpoint, or begin to; with `wait` it is complete on return."""
        self._require_lease()
        self.checkpoints.save(state)
        self.saved_step = state.step
        if wait:
            self.checkpoints.wait()

    def _saved(self, path: Path) -> None:
        """What follows a complete checkpoint; in a thread of the first worker, and the next checkpoint waits for it."""
        self.store.put_checkpoints()
        self.metrics.saved()

    def _load_student(self) -> Student:
        check_loaded_models(self.config, self.folder, [STUDENT])
        settings = initial_student(self.config, self.folder.initial_model)
        student = Student(load_student(settings, self.config.train.attention, as_stored=True))
        if self.config.align is not None:
            load_alignment(student.model, self.folder.aligned_weights)
        prepare(student, self.config.train, self.device, self.config.seed)
        return student

    def _load_teacher(self) -> TeacherClient | None:
        if not self.config.uses_teacher:
            return None
        log_to = partial(run_log, self.folder, self.config.name, self.rank, "teacher")
        check = partial(check_loaded_models, self.config, self.folder, [TEACHER])
        return make_teacher(self.config.teacher, self.dtype, self.device, self.threads, log_to, check)
