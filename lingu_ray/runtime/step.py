"""One optimiser step: micro-batches forward, to the teacher, backward; the teacher works while the student goes on."""

from __future__ import annotations

import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lingu_ray.config import Config
from lingu_ray.corpus.batch import MicroBatch
from lingu_ray.distill.continuation import make_request
from lingu_ray.distill.divergence import divergence_of
from lingu_ray.distill.donation import Donation, plan_donation, predicting
from lingu_ray.distill.loss import LossScales, LossTerms, TeacherAnswer, ce_kd_loss
from lingu_ray.distill.student import Student
from lingu_ray.runtime.distributed import all_sum
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
    """τ, w_ce and w_kd of this step, and the counts they are normalised by, over all workers."""

    temperature: float
    w_ce: float
    w_kd: float
    ce_tokens: float
    kd_tokens: float


@dataclass
class _InFlight:
    """A micro-batch whose forward pass is done and whose teacher may still be thinking."""

    hidden_ND: Tensor
    labels_N: Tensor
    ce_weight_N: Tensor
    answered_N: Tensor | None
    ticket: Any


class MicroBatches:
    """Runs micro-batches of a student: forward, teacher, loss, backward."""

    def __init__(self, config: Config, student: Student, teacher: TeacherClient | None, device: torch.device):
        self.config, self.student, self.teacher, self.device = config, student, teacher, device
        self.divergence = divergence_of(config.distill)
        self.ce_weights = {source.name: config.ce_weight(source) for source in config.corpus.sources}
        self.distilled = {source.name for source in config.corpus.sources if config.distils(source)}

    def plan(self, batch: MicroBatch) -> Donation | None:
        """What the teacher is asked about this micro-batch."""
        if self.teacher is None:
            return None
        return plan_donation(
            batch.input_ids_BT,
            batch.attention_mask_BT,
            batch.supervised_BT,
            batch.visual_BT,
            torch.tensor([source in self.distilled for source in batch.sources]),
            teacher_vocabulary=self.teacher.head_UD.shape[0],
            context=self.config.teacher.context,
            scope=self.config.teacher.scope,
        )

    def weights(self, progress: float, batches: list[MicroBatch], plans: list[Donation | None]) -> StepWeights:
        """Weights at `progress` of the run, with the token counts of the whole step."""
        ce_tokens = sum(int(batch.supervised_BT.sum()) for batch in batches)
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
        for batch, plan in zip(batches, plans, strict=True):
            in_flight.append(self._forward(batch, plan))
            if len(in_flight) > self.config.teacher.look_ahead:
                self._backward(in_flight.popleft(), weights, sums)
        while in_flight:
            self._backward(in_flight.popleft(), weights, sums)
        return sums

    @torch.no_grad()
    def cross_entropy(self, batch: MicroBatch) -> float:
        """Sum of the micro-batch's cross-entropies in nats."""
        flight = self._forward(batch, None)
        return float(self._loss(flight, LossScales(flight.ce_weight_N, 0.0, 1.0), None).ce_N.sum())

    def _forward(self, batch: MicroBatch, plan: Donation | None) -> _InFlight:
        predicts_BT = predicting(batch.supervised_BT)
        row_N, column_N = predicts_BT.nonzero(as_tuple=True)
        donated = plan if self.config.teacher.context == "shared_kv" else None
        with self._autocast():
            hidden_BTD, kv_L2PHE = self.student.hidden_states(
                batch.input_ids_BT.to(self.device),
                batch.attention_mask_BT.to(self.device),
                {name: tensor.to(self.device) for name, tensor in batch.vision.items()},
                donated,
            )
        ticket = None
        if plan is not None and self.teacher is not None:
            request = make_request(plan, torch.empty(0, 2, 0, 0, 0) if kv_L2PHE is None else kv_L2PHE)
            ticket = self.teacher.submit(request)
        weight_B = torch.tensor([self.ce_weights[source] for source in batch.sources])
        return _InFlight(
            hidden_ND=hidden_BTD[row_N.to(self.device), column_N.to(self.device)],
            labels_N=batch.input_ids_BT[row_N, column_N + 1].to(self.device),
            ce_weight_N=weight_B[row_N].to(self.device),
            answered_N=None if plan is None else plan.answered_N.to(self.device),
            ticket=ticket,
        )

    def _backward(self, flight: _InFlight, weights: StepWeights, sums: StepSums) -> None:
        answer = None
        if flight.answered_N is not None and self.teacher is not None:
            begin = time.perf_counter()
            hidden_MD = self.teacher.result(flight.ticket)
            sums.teacher_wait += time.perf_counter() - begin
            answer = TeacherAnswer(hidden_MD, self.teacher.head_UD, flight.answered_N)
        scales = LossScales(
            ce_N=flight.ce_weight_N * (weights.w_ce / weights.ce_tokens),
            kd=weights.w_kd / max(weights.kd_tokens, 1),
            temperature=weights.temperature,
        )
        terms = self._loss(flight, scales, answer)
        terms.loss.backward()
        sums.loss += float(terms.loss.detach())
        sums.ce += float(terms.ce_N.sum())
        sums.kd += float(terms.kd_M.sum())

    def _loss(self, flight: _InFlight, scales: LossScales, answer: TeacherAnswer | None) -> LossTerms:
        return ce_kd_loss(flight.hidden_ND, self.student.head_VD, flight.labels_N, scales, answer, self.divergence)

    def _autocast(self) -> AbstractContextManager:
        if self.config.train.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()
