"""One optimizer step: micro-batches forward, to the teacher, backward; the teacher works while the student goes on."""

from __future__ import annotations

import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lingu_ray.config import Config
from lingu_ray.corpus.batch import MicroBatch, make_micro_batches
from lingu_ray.corpus.encode import Sample
from lingu_ray.distill.continuation import make_request
from lingu_ray.distill.divergence import divergence_of
from lingu_ray.distill.donation import Donation, plan_donation, predicting
from lingu_ray.distill.inputs import ModelInputs
from lingu_ray.distill.loss import LossScales, LossTerms, TeacherAnswer, ce_kd_loss
from lingu_ray.distill.student import Student
from lingu_ray.runtime.distributed import all_sum
from lingu_ray.runtime.sharding import dummy_micro_batches, is_sharded
from lingu_ray.runtime.teachers import TeacherClient


@dataclass
class StepSums:
    """Sums over this worker's micro-batches; `teacher_wait` in seconds."""

    loss: float = 0.0
    ce: float = 0.0
    kd: float = 0.0
    teacher_wait: float = 0.0


@dataclass(frozen=True)
class StepWeights:
    """τ, w_ce and w_kd of this step, and the counts they are normalized by, over all workers."""

    temperature: float
    w_ce: float
    w_kd: float
    ce_tokens: float
    kd_tokens: float


@dataclass
class _InFlight:
    """A micro-batch whose forward pass is done and whose teacher may still be thinking.

    `labeled_N`: tokens whose answer is the corpus's own, so that they have a cross-entropy to learn from.
    """

    hidden_ND: Tensor
    labels_N: Tensor
    labeled_N: Tensor
    ce_weight_N: Tensor
    kd_weight_M: Tensor
    answered_N: Tensor
    ticket: Any


class MicroBatches:
    """Runs micro-batches of a student: forward, teacher, loss, backward."""

    def __init__(self, config: Config, student: Student, teacher: TeacherClient | None, device: torch.device):
        self.config, self.student, self.teacher, self.device = config, student, teacher, device
        ahead = config.teacher.look_ahead
        self.look_ahead = int(device.type != "cpu") if ahead is None else ahead
        self.divergence = divergence_of(config.distill)
        self.ce_weights = {source.name: config.ce_weight(source) for source in config.corpus.sources}
        self.kd_weights = {source.name: source.kd_weight for source in config.corpus.sources}
        self.distilled = config.distilled_sources()

    def make(self, samples: list[Sample], pad_id: int) -> list[MicroBatch]:
        """This worker's samples of a step as micro-batches."""
        settings = self.config.train
        return make_micro_batches(samples, settings.tokens_per_micro_batch, pad_id, settings.packing)

    def plan(self, batch: MicroBatch) -> Donation | None:
        """What the teacher is asked about this micro-batch."""
        if self.teacher is None:
            return None
        return plan_donation(
            batch.input_ids_BT,
            batch.sample_BT,
            batch.supervised_BT,
            batch.visual_BT,
            torch.tensor([source in self.distilled for source in batch.sources]),
            teacher_vocabulary=self.teacher.output_head.vocabulary,
            context=self.config.teacher.context,
            scope=self.config.teacher.scope,
        )

    def weights(self, progress: float, batches: list[MicroBatch], plans: list[Donation | None]) -> StepWeights:
        """Weights at `progress` of the run, with the token counts of the whole step."""
        ce_tokens = sum(_labeled_tokens(batch) for batch in batches)
        kd_tokens = sum(plan.tokens for plan in plans if plan is not None)
        ce_tokens, kd_tokens = all_sum([ce_tokens, kd_tokens], self.device)
        distill = self.config.distill
        return StepWeights(
            distill.temperature.at(progress), distill.w_ce.at(progress), distill.w_kd.at(progress), ce_tokens, kd_tokens
        )

    def run(self, batches: list[MicroBatch], plans: list[Donation | None], weights: StepWeights) -> StepSums:
        """Accumulate the gradients of all micro-batches; their sum over the workers is the step's gradient."""
        sums = StepSums()
        in_flight: deque[_InFlight] = deque()
        passes = list(zip(batches, plans, strict=True))
        if is_sharded(self.student.decoder):
            passes += [(batch, None) for batch in dummy_micro_batches(batches, self.device)]
        for batch, plan in passes:
            in_flight.append(self._forward(batch, plan))
            if len(in_flight) > self.look_ahead:
                self._backward(in_flight.popleft(), weights, sums)
        while in_flight:
            self._backward(in_flight.popleft(), weights, sums)
        return sums

    @torch.no_grad()
    def cross_entropy(self, batch: MicroBatch) -> float:
        """Sum of the micro-batch's cross-entropies in nats."""
        flight = self._forward(batch, None)
        scales = LossScales(flight.ce_weight_N, flight.kd_weight_M, temperature=1.0)
        return float(self._loss(flight, scales, None).ce_N.sum())

    def _forward(self, batch: MicroBatch, plan: Donation | None) -> _InFlight:
        row_N, column_N = predicting(batch.supervised_BT, batch.sample_BT).nonzero(as_tuple=True)
        donated = plan if self.config.teacher.context == "shared_kv" else None
        with self.autocast():
            hidden_BTD, capture = self.student.hidden_states(self.inputs(batch), donated)
        ticket = None
        if plan is not None and self.teacher is not None:
            ticket = self.teacher.submit(make_request(plan, capture))
        sample_N = batch.sample_BT[row_N, column_N]
        answered_N = torch.zeros_like(row_N, dtype=torch.bool) if plan is None else plan.answered_N
        return _InFlight(
            hidden_ND=hidden_BTD[row_N.to(self.device), column_N.to(self.device)],
            labels_N=batch.input_ids_BT[row_N, column_N + 1].to(self.device),
            labeled_N=~batch.sampled_S[sample_N].to(self.device),
            ce_weight_N=_by_source(self.ce_weights, batch)[sample_N].to(self.device),
            kd_weight_M=_by_source(self.kd_weights, batch)[sample_N[answered_N]].to(self.device),
            answered_N=answered_N.to(self.device),
            ticket=ticket,
        )

    def _backward(self, flight: _InFlight, weights: StepWeights, sums: StepSums) -> None:
        answer = None
        if flight.ticket is not None and self.teacher is not None:
            begin = time.perf_counter()
            hidden_MD = self.teacher.result(flight.ticket)
            sums.teacher_wait += time.perf_counter() - begin
            answer = TeacherAnswer(hidden_MD, self.teacher.output_head, flight.answered_N)
        scales = LossScales(
            ce_N=flight.ce_weight_N * flight.labeled_N * (weights.w_ce / max(weights.ce_tokens, 1)),
            kd_M=flight.kd_weight_M * (weights.w_kd / max(weights.kd_tokens, 1)),
            temperature=weights.temperature,
        )
        terms = self._loss(flight, scales, answer)
        if terms.loss.requires_grad:  # not where all is frozen that the micro-batch runs through
            terms.loss.backward()
        sums.loss += float(terms.loss.detach())
        sums.ce += float(terms.ce_N[flight.labeled_N].sum())
        sums.kd += float(terms.kd_M.sum())

    def _loss(self, flight: _InFlight, scales: LossScales, answer: TeacherAnswer | None) -> LossTerms:
        return ce_kd_loss(flight.hidden_ND, self.student.output_head, flight.labels_N, scales, answer, self.divergence)

    def inputs(self, batch: MicroBatch) -> ModelInputs:
        """What the student reads of a micro-batch, on its device."""
        inputs = ModelInputs(batch.input_ids_BT, batch.sample_BT, batch.supervised_BT, batch.visual_BT, batch.vision)
        return inputs.to(self.device)

    def autocast(self) -> AbstractContextManager:
        """The precision that forward passes run in."""
        if self.config.train.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


def _by_source(weights: dict[str, float], batch: MicroBatch) -> Tensor:
    return torch.tensor([weights[source] for source in batch.sources])


def _labeled_tokens(batch: MicroBatch) -> int:
    row_N, column_N = batch.supervised_BT.nonzero(as_tuple=True)
    return int((~batch.sampled_S[batch.sample_BT[row_N, column_N]]).sum())
