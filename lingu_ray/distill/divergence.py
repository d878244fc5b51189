"""Divergences between teacher and student distributions, with their gradients in closed form.

Each function takes, in float32, log-probabilities and probabilities of the student (`log_s_MV`, `s_MV`, only read) and
of the teacher (`log_t_MV`, `t_MV`, overwritten), and a workspace. It returns the divergence of every token `[M]` and
its gradient `[M, V]` with respect to the student's *scaled logits* (z = logits / τ, log_s = log_softmax(z)).
They are true divergences: 0 when both agree, never negative.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lingu_ray.distill.arguments import as_number
from lingu_ray.distill.workspace import Workspace
from lingu_ray.errors import UserError

DivergenceFn = Callable[[Tensor, Tensor, Tensor, Tensor, Workspace], tuple[Tensor, Tensor]]

_TV_RESOLUTION = 1e5  # of log s − log t, whose rounding errors are about 1e-6


def forward_kl(
    log_s_MV: Tensor, s_MV: Tensor, log_t_MV: Tensor, t_MV: Tensor, work: Workspace
) -> tuple[Tensor, Tensor]:
    """KL(T‖S) = Σ t (log t − log s); gradient s − t."""
    value_M = log_t_MV.sub_(log_s_MV).mul_(t_MV).sum(-1)
    return value_M.clamp_(min=0), torch.sub(s_MV, t_MV, out=t_MV)


def reverse_kl(
    log_s_MV: Tensor, s_MV: Tensor, log_t_MV: Tensor, t_MV: Tensor, work: Workspace
) -> tuple[Tensor, Tensor]:
    """KL(S‖T) = Σ s (log s − log t); gradient s (log s − log t − KL)."""
    grad_MV = torch.sub(log_s_MV, log_t_MV, out=log_t_MV).mul_(s_MV)
    value_M = grad_MV.sum(-1)
    return value_M.clamp(min=0), grad_MV.addcmul_(s_MV, value_M.unsqueeze(-1), value=-1)


def jsd(
    log_s_MV: Tensor, s_MV: Tensor, log_t_MV: Tensor, t_MV: Tensor, work: Workspace, beta: float
) -> tuple[Tensor, Tensor]:
    """Generalized Jensen–Shannon: β KL(T‖m) + (1 − β) KL(S‖m) with m = β t + (1 − β) s.

    With g = (1 − β)(log s − log m) the gradient is s (g − Σ s g). (Agarwal et al. 2024, GKD, eq. 1.)
    """
    m_MV = torch.lerp(s_MV, t_MV, beta, out=work.like("m", t_MV))
    # where both underflow the term is 0, not 0 · ∞
    log_m_MV = m_MV.clamp_(min=torch.finfo(m_MV.dtype).tiny).log_()
    teacher_M = log_t_MV.sub_(log_m_MV).mul_(t_MV).sum(-1)
    grad_MV = torch.sub(log_s_MV, log_m_MV, out=log_m_MV).mul_(s_MV).mul_(1 - beta)
    student_M = grad_MV.sum(-1)
    value_M = beta * teacher_M + student_M
    return value_M.clamp_(min=0), grad_MV.addcmul_(s_MV, student_M.unsqueeze(-1), value=-1)


def total_variation(
    log_s_MV: Tensor, s_MV: Tensor, log_t_MV: Tensor, t_MV: Tensor, work: Workspace
) -> tuple[Tensor, Tensor]:
    """TV = ½ Σ |s − t|; with h = ½ sign(s − t) a subgradient is s (h − Σ s h)."""
    value_M = torch.sub(s_MV, t_MV, out=t_MV).norm(1, dim=-1).div_(2)
    # the sign is 0 where both agree as far as float32 can tell
    sign_MV = torch.sub(log_s_MV, log_t_MV, out=log_t_MV).mul_(_TV_RESOLUTION).trunc_().sign_()
    grad_MV = sign_MV.mul_(s_MV).div_(2)
    return value_M, grad_MV.addcmul_(s_MV, grad_MV.sum(-1, keepdim=True), value=-1)


def _top_k(
    log_s_MV: Tensor,
    s_MV: Tensor,
    log_t_MV: Tensor,
    t_MV: Tensor,
    work: Workspace,
    divergence: DivergenceFn,
    k: int,
) -> tuple[Tensor, Tensor]:
    """The divergence over k + 1 outcomes: the teacher's k likeliest ids, and all others as one bucket.

    The bucket's logit is the logsumexp of its ids' logits, so an id i of it has the bucket's gradient times
    s_i / s_bucket. With k ids or fewer it is the plain divergence.
    """
    if k >= log_t_MV.shape[-1]:
        return divergence(log_s_MV, s_MV, log_t_MV, t_MV, work)
    top_log_t_Mk, top_Mk = log_t_MV.topk(k, sorted=False)
    rest_log_t_MV = log_t_MV.scatter_(-1, top_Mk, -torch.inf)
    rest_log_s_MV = t_MV.copy_(log_s_MV).scatter_(-1, top_Mk, -torch.inf)
    bucket_M1 = rest_log_s_MV.logsumexp(-1, keepdim=True)
    log_s_MK = torch.cat([log_s_MV.gather(-1, top_Mk), bucket_M1], -1)
    log_t_MK = torch.cat([top_log_t_Mk, rest_log_t_MV.logsumexp(-1, keepdim=True)], -1)
    value_M, grad_MK = divergence(log_s_MK, log_s_MK.exp(), log_t_MK, log_t_MK.exp(), work)
    grad_MV = rest_log_s_MV.sub_(bucket_M1).exp_().mul_(grad_MK[:, k:])
    return value_M, grad_MV.scatter_(-1, top_Mk, grad_MK[:, :k])


_BY_NAME: dict[str, Callable[..., Any]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "tv": total_variation,
}


def divergence_of(name: str, beta: float = 0.5, top_k: int | None = None) -> DivergenceFn:
    """The divergence of this name.

    Args:
        name: forward_kl KL(T‖S), reverse_kl KL(S‖T), jsd (generalized Jensen–Shannon) or tv (total variation).
        beta: the teacher's weight in the mixture of jsd, between 0 and 1; the others have none.
        top_k: compare the teacher's k likeliest ids one by one and all others as one; None: every id.

    Raises:
        UserError: no such divergence; `beta` or `top_k` out of range.
    """
    if name not in tuple(_BY_NAME):
        raise UserError(f"divergence={name!r}: choose one of {', '.join(_BY_NAME)}")
    if not 0 < as_number(beta) < 1:
        raise UserError(f"beta={beta!r}: must be a number between 0 and 1")
    if top_k is not None and not (as_number(top_k) >= 1 and as_number(top_k).is_integer()):
        raise UserError(f"top_k={top_k!r}: must be a whole number of 1 or more, or None for every id")
    plain: DivergenceFn = partial(jsd, beta=beta) if name == "jsd" else _BY_NAME[name]
    return plain if top_k is None else partial(_top_k, divergence=plain, k=int(top_k))
