"""Divergences between teacher and student distributions, with their gradients in closed form.

Each function takes log-probabilities in float32, `log_s_MV` of the student and `log_t_MV` of the teacher, and returns
the divergence of every token `[M]` and its gradient `[M, V]` with respect to the student's *scaled logits*
(z = logits / τ, log_s = log_softmax(z)). They are true divergences: 0 when both agree, never negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from lingu_ray.config import DistillConfig

DivergenceFn = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def forward_kl(log_s_MV: Tensor, log_t_MV: Tensor) -> tuple[Tensor, Tensor]:
    """KL(T‖S) = Σ t (log t − log s); gradient s − t."""
    t_MV = log_t_MV.exp()
    value_M = (t_MV * (log_t_MV - log_s_MV)).sum(-1)
    return value_M.clamp_(min=0), log_s_MV.exp().sub_(t_MV)


def reverse_kl(log_s_MV: Tensor, log_t_MV: Tensor) -> tuple[Tensor, Tensor]:
    """KL(S‖T) = Σ s (log s − log t); gradient s (log s − log t − KL)."""
    s_MV = log_s_MV.exp()
    ratio_MV = log_s_MV - log_t_MV
    value_M = (s_MV * ratio_MV).sum(-1)
    return value_M.clamp(min=0), s_MV.mul_(ratio_MV.sub_(value_M.unsqueeze(-1)))


def jsd(log_s_MV: Tensor, log_t_MV: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Generalised Jensen–Shannon: β KL(T‖m) + (1 − β) KL(S‖m) with m = β t + (1 − β) s.

    With g = (1 − β)(log s − log m) the gradient is s (g − Σ s g). (Agarwal et al. 2024, GKD, eq. 1.)
    """
    log_m_MV = (log_t_MV + math.log(beta)).logaddexp(log_s_MV + math.log1p(-beta))
    s_MV = log_s_MV.exp()
    g_MV = (log_s_MV - log_m_MV).mul_(1 - beta)
    student_M = (s_MV * g_MV).sum(-1)
    teacher_M = (log_t_MV.exp() * (log_t_MV - log_m_MV)).sum(-1)
    value_M = beta * teacher_M + student_M
    return value_M.clamp_(min=0), s_MV.mul_(g_MV.sub_(student_M.unsqueeze(-1)))


def divergence_of(settings: DistillConfig) -> DivergenceFn:
    """The divergence that the settings name."""
    if settings.divergence == "jsd":
        return lambda log_s_MV, log_t_MV: jsd(log_s_MV, log_t_MV, settings.beta)
    return {"forward_kl": forward_kl, "reverse_kl": reverse_kl}[settings.divergence]
