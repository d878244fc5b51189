"""The method for one micro-batch: plan the donation, run the student, ask the teacher, compute the loss.

The steps are separate so that a caller can do other work between asking the teacher and needing its output. The KV that
the student donates is detached and the teacher runs without gradients: only the student learns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lingu_ray.distill.autocast import compute_dtype
from lingu_ray.distill.continuation import TeacherRequest, make_request, merge_requests
from lingu_ray.distill.divergence import DivergenceFn
from lingu_ray.distill.donation import Context, Donation, EarlierTurns, Scope, plan_donation, predicting
from lingu_ray.distill.inputs import ModelInputs
from lingu_ray.distill.loss import LossScales, LossTerms, TeacherOutput, ce_kd_loss
from lingu_ray.distill.student import Student
from lingu_ray.distill.teacher import TeacherClient
from lingu_ray.distill.transfer import send


@dataclass(frozen=True)
class StudentPass:
    """A micro-batch after the student's forward pass.

    `hidden_ND`: the student's final hidden states where it predicts the N supervised tokens `labels_N`, row-major, in
    the dtype that autocast computes in.
    `sample_N`: the sample of each. `kd_mask_N`: which of them get a KD term. Both are on the CPU.
    """

    hidden_ND: Tensor
    labels_N: Tensor
    sample_N: Tensor
    kd_mask_N: Tensor


@dataclass(frozen=True)
class SampleScales:
    """What the terms of a sample's tokens are multiplied by: w_ce · c / N_ce and w_kd · k / N_kd (see `loss`).

    `ce_S`, `kd_S`: float32, on the CPU. `temperature`: τ of the KD term. `labeled_N` (bool): the supervised tokens with
    a cross-entropy; None: all.
    """

    ce_S: Tensor
    kd_S: Tensor
    temperature: float
    labeled_N: Tensor | None = None


@dataclass
class DistillStep:
    """`plan`, `forward`, `ask`, `teacher_outputs` and `loss` of a pair; without a teacher there is no KD term.

    What a micro-batch holds stays on the CPU until it is sent; the method itself reads nothing back from the device.
    """

    student: Student
    teacher: TeacherClient | None
    divergence: DivergenceFn
    context: Context = "shared_kv"
    scope: Scope = "full"
    earlier_turns: EarlierTurns = "student"

    def plan(self, inputs: ModelInputs, distill_S: Tensor) -> Donation | None:
        """What the teacher is asked about the micro-batch (on the CPU); None: nothing.

        `distill_S` (bool): the samples that are distilled.
        """
        if self.teacher is None:
            return None
        return plan_donation(
            inputs.input_ids_BT,
            inputs.sample_BT,
            inputs.supervised_BT,
            inputs.visual_BT,
            distill_S,
            teacher_vocabulary=self.teacher.output_head.vocabulary,
            context=self.context,
            scope=self.scope,
            earlier_turns=self.earlier_turns,
        )

    def forward(self, inputs: ModelInputs, plan: Donation | None) -> tuple[StudentPass, TeacherRequest | None]:
        """Run the student on its own device, in the caller's autocast; and what to ask the teacher, as planned.

        `inputs` are on the CPU. The request holds the donated KV: `ask` soon, and let go of it.
        """
        device = self.student.model.device
        row_N, column_N = predicting(inputs.supervised_BT, inputs.sample_BT).nonzero(as_tuple=True)
        labels_N = inputs.input_ids_BT[row_N, column_N + 1]
        sent = send({"labels_N": labels_N, "flat_N": row_N * inputs.input_ids_BT.shape[1] + column_N}, device)
        donated = plan if self.context == "shared_kv" else None
        hidden_BTD, capture = self.student.hidden_states(inputs, donated)
        done = StudentPass(
            # not by [...], whose backward pass sorts indices on GPUs
            hidden_ND=hidden_BTD.flatten(0, 1).index_select(0, sent["flat_N"]).to(compute_dtype(hidden_BTD)),
            labels_N=sent["labels_N"],
            sample_N=inputs.sample_BT[row_N, column_N],
            kd_mask_N=torch.zeros_like(row_N, dtype=torch.bool) if plan is None else plan.kd_mask_N,
        )
        return done, None if plan is None else make_request(plan, capture)

    def ask(self, requests: Sequence[TeacherRequest | None]) -> Any:
        """One call of the teacher for the requests of some passes; a ticket, None where nothing is asked."""
        asked = [request for request in requests if request is not None]
        if not asked or self.teacher is None:
            return None
        device = self.student.model.device
        with torch.autocast(device.type, enabled=False):  # the teacher keeps its own precision
            return self.teacher.submit(merge_requests(asked))

    def teacher_outputs(self, ticket: Any, passes: Sequence[StudentPass]) -> list[TeacherOutput | None]:
        """Wait for the answer about these passes; None for one about which nothing was asked."""
        if ticket is None or self.teacher is None:
            return [None] * len(passes)
        counts = [int(done.kd_mask_N.sum()) for done in passes]
        hidden = self.teacher.result(ticket).split(counts)
        return [
            TeacherOutput(hidden_MD, self.teacher.output_head, done.kd_mask_N) if count else None
            for hidden_MD, done, count in zip(hidden, passes, counts, strict=True)
        ]

    def loss(self, done: StudentPass, teacher: TeacherOutput | None, scales: SampleScales) -> LossTerms:
        """CE + KD, with their values for every token (see `loss.ce_kd_loss`)."""
        device = done.hidden_ND.device
        ce_N = scales.ce_S[done.sample_N]
        if scales.labeled_N is not None:
            ce_N = ce_N * scales.labeled_N
        by_token = {"ce_N": ce_N, "kd_M": scales.kd_S[done.sample_N[done.kd_mask_N]]}
        token_scales = LossScales(**send(by_token, device), temperature=scales.temperature)
        head = self.student.output_head
        with torch.autocast(device.type, enabled=False):  # its arithmetic is float32 throughout
            return ce_kd_loss(done.hidden_ND, head, done.labels_N, token_scales, teacher, self.divergence)
