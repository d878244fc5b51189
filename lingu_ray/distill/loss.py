"""The fused loss: cross-entropy on every supervised token, KD where the teacher answered.

    L = w_ce · Σ c_i CE_i / N_ce  +  w_kd · τ² · Σ KD_τ,i / N_kd

with N the counts of the whole optimiser step, over micro-batches and workers, so that the loss does not depend on how a
batch is cut. Logits exist a chunk of tokens at a time; the gradients of hidden states and head come out of the same
pass, so no `[tokens, vocabulary]` tensor is ever made. All softmax arithmetic is float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lingu_ray.distill.divergence import DivergenceFn

_CHUNK_ELEMENTS = 2**24
"""Logits held at a time: 64 MiB in float32."""


@dataclass(frozen=True)
class TeacherAnswer:
    """What the teacher says about M of the N supervised tokens.

    `answered_N` (bool) marks them, `hidden_MD` are its final hidden states in the same order, `head_UD` its output
    head. Ids below min(V, U) are shared; both distributions are renormalised over them.
    """

    hidden_MD: Tensor
    head_UD: Tensor
    answered_N: Tensor


@dataclass(frozen=True)
class LossScales:
    """What each token's terms are multiplied by, normalisation and weights included.

    `ce_N`: w_ce · c_i / N_ce for each supervised token (float32). `kd`: w_kd / N_kd (τ² is applied here).
    `temperature`: τ, of the KD term alone.
    """

    ce_N: Tensor
    kd: float
    temperature: float


@dataclass(frozen=True)
class LossTerms:
    """`loss` (scalar, differentiable), and per token, detached: `ce_N` in nats, `kd_M` the divergence without τ²."""

    loss: Tensor
    ce_N: Tensor
    kd_M: Tensor


def ce_kd_loss(
    hidden_ND: Tensor,
    head_VD: Tensor,
    labels_N: Tensor,
    scales: LossScales,
    answer: TeacherAnswer | None,
    divergence: DivergenceFn,
) -> LossTerms:
    """Fused CE + KD over the supervised tokens (method.md's loss; paper Figure 3).

    `hidden_ND`: the student's final hidden states at the positions that predict `labels_N`; any float dtype.
    `head_VD`: its output head. Gradients reach these two alone.
    """
    loss, ce_N, kd_M = _FusedLoss.apply(hidden_ND, head_VD, labels_N, scales, answer, divergence)
    return LossTerms(loss, ce_N, kd_M)


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        labels_N: Tensor,
        scales: LossScales,
        answer: TeacherAnswer | None,
        divergence: DivergenceFn,
    ) -> tuple[Tensor, Tensor, Tensor]:
        need_hidden, need_head = ctx.needs_input_grad[:2]
        head_cast_VD = head_VD.to(hidden_ND.dtype)
        grad_hidden_ND = torch.empty_like(hidden_ND) if need_hidden else None
        grad_head_VD = torch.zeros_like(head_VD, dtype=torch.float32) if need_head else None
        ce, kd = [], []
        answered = 0
        rows = max(1, _CHUNK_ELEMENTS // head_VD.shape[0])
        for start in range(0, hidden_ND.shape[0], rows):
            cut = slice(start, start + rows)
            logits = (hidden_ND[cut] @ head_cast_VD.T).float()
            grad = _add_ce(logits, labels_N[cut], scales.ce_N[cut], ce)
            if answer is not None:
                index = answer.answered_N[cut].nonzero().squeeze(1)
                targets = answer.hidden_MD[answered : answered + len(index)]
                answered += len(index)
                _add_kd(logits, grad, index, targets, answer.head_UD, scales, divergence, kd)
            grad = grad.to(hidden_ND.dtype)
            if grad_hidden_ND is not None:
                torch.matmul(grad, head_cast_VD, out=grad_hidden_ND[cut])
            if grad_head_VD is not None:
                grad_head_VD += (grad.T @ hidden_ND[cut]).float()
        ce_N = torch.cat(ce) if ce else hidden_ND.new_zeros(0, dtype=torch.float32)
        kd_M = torch.cat(kd) if kd else hidden_ND.new_zeros(0, dtype=torch.float32)
        loss = (ce_N * scales.ce_N).sum() + kd_M.sum() * scales.kd * scales.temperature**2
        ctx.save_for_backward(grad_hidden_ND, grad_head_VD)
        ctx.head_dtype = head_VD.dtype
        ctx.mark_non_differentiable(ce_N, kd_M)
        return loss, ce_N, kd_M

    @staticmethod
    @once_differentiable
    # pyrefly: ignore [bad-override]  (the base class names no parameters)
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        grad_loss = grad_outputs[0]
        grad_hidden_ND, grad_head_VD = ctx.saved_tensors
        hidden = None if grad_hidden_ND is None else grad_hidden_ND * grad_loss
        head = None if grad_head_VD is None else (grad_head_VD * grad_loss).to(ctx.head_dtype)
        return hidden, head, None, None, None, None


def _add_ce(logits_nV: Tensor, labels_n: Tensor, scale_n: Tensor, out: list[Tensor]) -> Tensor:
    """Append the chunk's cross-entropies to `out`; return their scaled gradient with respect to the logits."""
    log_z_n = logits_nV.logsumexp(-1)
    label_n1 = labels_n.unsqueeze(1)
    out.append(log_z_n - logits_nV.gather(1, label_n1).squeeze(1))
    grad_nV = (logits_nV - log_z_n.unsqueeze(1)).exp_().mul_(scale_n.unsqueeze(1))
    return grad_nV.scatter_add_(1, label_n1, -scale_n.unsqueeze(1))


def _add_kd(
    logits_nV: Tensor,
    grad_nV: Tensor,
    index_m: Tensor,
    teacher_mD: Tensor,
    teacher_head_UD: Tensor,
    scales: LossScales,
    divergence: DivergenceFn,
    out: list[Tensor],
) -> None:
    """Append the divergences of the chunk's answered tokens to `out`; add their gradient to `grad_nV` in place."""
    if not len(index_m):
        return
    shared = min(logits_nV.shape[1], teacher_head_UD.shape[0])
    tau = scales.temperature
    teacher_logits = (teacher_mD @ teacher_head_UD[:shared].to(teacher_mD.dtype).T).float()
    log_t = teacher_logits.div_(tau).log_softmax(-1)
    log_s = (logits_nV[index_m, :shared] / tau).log_softmax(-1)
    value_m, grad_z = divergence(log_s, log_t)
    out.append(value_m)
    # dL/dlogits = τ² · dKD/dz · 1/τ
    grad_nV[:, :shared].index_add_(0, index_m, grad_z, alpha=scales.kd * tau)
