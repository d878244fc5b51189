"""One optimizer step: micro-batches forward, to the teacher, backward; the teacher works while the student continues.

What happens to one micro-batch is `lingu_ray.distill.step`; here are the settings, the counts over all workers, how far
the student runs ahead of its teacher, and the passes that sharding needs.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lingu_ray.config import Config
from lingu_ray.corpus.batch import MicroBatch, make_micro_batches
from lingu_ray.corpus.encode import Sample
from lingu_ray.distill.continuation import TeacherRequest
from lingu_ray.distill.divergence import divergence_of
from lingu_ray.distill.donation import Donation, predicting
from lingu_ray.distill.inputs import ModelInputs
from lingu_ray.distill.loss import TeacherOutput
from lingu_ray.distill.step import DistillStep, SampleScales, StudentPass
from lingu_ray.distill.student import Student
from lingu_ray.distill.teacher import Teacher, TeacherClient
from lingu_ray.distill.transfer import send
from lingu_ray.passes import tokens_of_a_pass
from lingu_ray.runtime.training.distributed import all_sum
from lingu_ray.runtime.training.sharding import dummy_micro_batches, is_sharded


@dataclass
class StepSums:
    """Sums over this worker's micro-batches; `teacher_wait` in seconds, `kv_bytes` of the KV sent to the teacher."""

    loss: float = 0.0
    ce: float = 0.0
    kd: float = 0.0
    teacher_wait: float = 0.0
    kv_bytes: int = 0


@dataclass(frozen=True)
class StepWeights:
    """τ, w_ce and w_kd of this step, and its tokens over all workers: with a CE, with a KD term.

    `kd_normalizer`: what the sum of KD is divided by. `labeled`: of each of this worker's micro-batches, which of its
    N supervised tokens, in row-major order, have a CE (bool).
    """

    temperature: float
    w_ce: float
    w_kd: float
    ce_tokens: float
    kd_tokens: float
    kd_normalizer: float
    labeled: list[Tensor] = field(compare=False)

    def as_record(self) -> dict[str, float]:
        """What `metrics.jsonl` has of them."""
        weights = {"temperature": self.temperature, "w_ce": self.w_ce, "w_kd": self.w_kd}
        return weights | {"tokens": int(self.ce_tokens)}


_Planned = tuple[MicroBatch, Donation | None, Tensor]
"""A micro-batch, what the teacher is asked about it, and which of its supervised tokens have a CE."""


@dataclass(frozen=True)
class _Asked:
    """Micro-batches that the student has run, and the ticket of the teacher's one call for all of them."""

    call: list[_Planned]
    passes: Sequence[StudentPass]
    ticket: Any


class MicroBatches:
    """Runs micro-batches of a student: forward, teacher, loss, backward."""

    def __init__(self, config: Config, student: Student, teacher: TeacherClient | None, device: torch.device):
        self.config, self.student, self.teacher, self.device = config, student, teacher, device
        distill, ahead = config.distill, config.teacher.look_ahead
        divergence = divergence_of(distill.divergence, distill.beta, distill.top_k)
        settings = config.teacher
        self.step = DistillStep(student, teacher, divergence, settings.context, settings.scope, settings.earlier_turns)
        in_process = teacher is None or isinstance(teacher, Teacher)
        self.look_ahead = int(device.type != "cpu" and not in_process) if ahead is None else ahead
        self.of_a_call = settings.micro_batches_per_call
        self.rounds_once = not config.train.gradient_checkpointing  # which is there to save memory
        self.ce_weights = {source.name: config.ce_weight(source) for source in config.corpus.sources}
        self.kd_weights = {source.name: source.kd_weight for source in config.corpus.sources}
        self.distilled = config.distilled_sources()

    def make(self, samples: list[Sample], pad_id: int) -> list[MicroBatch]:
        """This worker's samples of a step as micro-batches."""
        settings = self.config.train
        price = tokens_of_a_pass(self.device)
        return make_micro_batches(samples, settings.tokens_per_micro_batch, pad_id, settings.packing, price)

    def plan(self, batch: MicroBatch) -> Donation | None:
        """What the teacher is asked about this micro-batch."""
        distill_S = torch.tensor([source in self.distilled for source in batch.sources])
        return self.step.plan(model_inputs(batch), distill_S)

    def weights(self, progress: float, batches: list[MicroBatch], plans: list[Donation | None]) -> StepWeights:
        """Weights at `progress` of the run, with the token counts of the whole step."""
        labeled = [_labeled(batch) for batch in batches]
        labeled_N = torch.cat(labeled)
        kd_tokens = sum(plan.tokens for plan in plans if plan is not None)
        ce_tokens, kd_tokens, supervised = all_sum([int(labeled_N.sum()), kd_tokens, len(labeled_N)], self.device)
        distill = self.config.distill
        return StepWeights(
            temperature=distill.temperature.at(progress),
            w_ce=distill.w_ce.at(progress),
            w_kd=distill.w_kd.at(progress),
            ce_tokens=ce_tokens,
            kd_tokens=kd_tokens,
            kd_normalizer=supervised if distill.kd_normalizer == "supervised" else kd_tokens,
            labeled=labeled,
        )

    def run(self, batches: list[MicroBatch], plans: list[Donation | None], weights: StepWeights) -> StepSums:
        """Accumulate the gradients of all micro-batches; their sum over the workers is the step's gradient.

        `weights`: as `weights` returned them for these micro-batches.
        """
        sums, terms = StepSums(), []
        in_flight: deque[_Asked] = deque()
        passes = list(zip(batches, plans, weights.labeled, strict=True))
        if is_sharded(self.student.decoder):
            passes += [(batch, None, _labeled(batch)) for batch in dummy_micro_batches(batches, self.device)]
        with self.autocast(self.rounds_once):
            for begin in range(0, len(passes), self.of_a_call):
                in_flight.append(self._ask(passes[begin : begin + self.of_a_call], sums))
                if len(in_flight) > self.look_ahead:
                    terms += self._backward(in_flight.popleft(), weights, sums)
            while in_flight:
                terms += self._backward(in_flight.popleft(), weights, sums)
        for loss, ce, kd in torch.stack(terms).tolist():  # once a step, as it waits for the device
            sums.loss, sums.ce, sums.kd = sums.loss + loss, sums.ce + ce, sums.kd + kd
        return sums

    @torch.no_grad()
    def cross_entropy(self, batch: MicroBatch) -> float:
        """Sum of the micro-batch's cross-entropies in nats."""
        ones_S = torch.ones(len(batch.sources))
        done, _ = self._forward(batch, None)
        terms = self.step.loss(done, None, SampleScales(ones_S, ones_S, temperature=1.0))
        return float(terms.ce_N.sum())

    def autocast(self, rounds_once: bool = True) -> AbstractContextManager:
        """The precision that forward passes run in; `rounds_once`: weights that it rounds are kept until its end."""
        bf16 = self.config.train.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16, cache_enabled=rounds_once)

    def _forward(self, batch: MicroBatch, plan: Donation | None) -> tuple[StudentPass, TeacherRequest | None]:
        with self.autocast(self.rounds_once):
            return self.step.forward(model_inputs(batch), plan)

    def _ask(self, call: list[_Planned], sums: StepSums) -> _Asked:
        """Run the student over the micro-batches of a call, and send the call."""
        done, requests = zip(*(self._forward(batch, plan) for batch, plan, _ in call), strict=True)
        sums.kv_bytes += sum(request.kv_L2CHE.nbytes for request in requests if request is not None)
        return _Asked(call, done, self.step.ask(requests))

    def _backward(self, asked: _Asked, weights: StepWeights, sums: StepSums) -> list[Tensor]:
        """Accumulate the gradients of a call's micro-batches; of each, its loss, CE and KD, summed, on the device."""
        start = time.perf_counter()
        outputs = self.step.teacher_outputs(asked.ticket, asked.passes)
        sums.teacher_wait += time.perf_counter() - start
        return [
            self._backward_of(batch, labeled_N, done, teacher, weights)
            for (batch, _, labeled_N), done, teacher in zip(asked.call, asked.passes, outputs, strict=True)
        ]

    def _backward_of(
        self, batch: MicroBatch, labeled_N: Tensor, done: StudentPass, teacher: TeacherOutput | None, by: StepWeights
    ) -> Tensor:
        scales = SampleScales(
            ce_S=_by_source(self.ce_weights, batch) * (by.w_ce / max(by.ce_tokens, 1)),
            kd_S=_by_source(self.kd_weights, batch) * (by.w_kd / max(by.kd_normalizer, 1)),
            temperature=by.temperature,
            labeled_N=labeled_N,
        )
        terms = self.step.loss(done, teacher, scales)
        if terms.loss.requires_grad:  # not where everything that the micro-batch passes through is frozen
            with torch.autocast(self.device.type, enabled=False):  # a backward pass has its own precision
                terms.loss.backward()
        ce_N = terms.ce_N
        if not labeled_N.all():
            ce_N = ce_N[send({"labeled": labeled_N.nonzero().flatten()}, self.device)["labeled"]]
        return torch.stack([terms.loss.detach(), ce_N.sum(), terms.kd_M.sum()])


def model_inputs(batch: MicroBatch) -> ModelInputs:
    """What the student reads of a micro-batch, on the CPU."""
    return ModelInputs(batch.input_ids_BT, batch.sample_BT, batch.supervised_BT, batch.visual_BT, batch.vision)


def _by_source(weights: dict[str, float], batch: MicroBatch) -> Tensor:
    return torch.tensor([weights[source] for source in batch.sources])


def _labeled(batch: MicroBatch) -> Tensor:
    """Which of the N supervised tokens, in row-major order, have a cross-entropy."""
    row_N, column_N = predicting(batch.supervised_BT, batch.sample_BT).nonzero(as_tuple=True)
    return ~batch.sampled_BT[row_N, column_N + 1]
