"""The two terms of the loss, separately: KD of every token, and the gradients of CE and KD."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from lingu_ray.corpus.batch import MicroBatch
from lingu_ray.distill.step import DistillStep, SampleScales
from lingu_ray.runtime.training.step import model_inputs

Term = Literal["ce", "kd"]


@dataclass(frozen=True)
class Terms:
    """`kd_M`: KD of every token in nats. `gradients`: of the summed term with respect to each trained parameter."""

    kd_M: Tensor
    gradients: dict[Term, list[Tensor]]


def compute_terms(step: DistillStep, batches: list[MicroBatch], autocast: AbstractContextManager) -> Terms:
    """Run student and teacher over the micro-batches with all rows distilled, and take the gradient of each term."""
    parameters = [p for p in step.student.model.parameters() if p.requires_grad]
    gradients: dict[Term, list[Tensor]] = {}
    kd: list[Tensor] = []
    for batch in batches:
        inputs, one_S = model_inputs(batch), torch.ones(len(batch.sources))
        plan = step.plan(inputs, one_S.bool())
        with autocast:
            done, request = step.forward(inputs, plan)
        (teacher,) = step.teacher_outputs(step.ask([request]), [done])
        for name in get_args(Term):
            scales = SampleScales(one_S * (name == "ce"), one_S * (name == "kd"), temperature=1.0)
            terms = step.loss(done, teacher, scales)
            parts = torch.autograd.grad(terms.loss, parameters, retain_graph=name == "ce", materialize_grads=True)
            earlier = gradients.get(name)
            gradients[name] = (
                list(parts) if earlier is None else [a.add_(b) for a, b in zip(earlier, parts, strict=True)]
            )
            if name == "kd":
                kd.append(terms.kd_M)
    return Terms(torch.cat(kd), gradients)


def norm(gradient: list[Tensor]) -> float:
    """Length of a gradient over all parameters."""
    return float(torch.stack([tensor.norm() for tensor in gradient]).norm())
