"""The fused loss: cross-entropy on every supervised token, KD on those that the teacher judged.

    L = w_ce · Σ c_i CE_i / N_ce  +  w_kd · τ² · Σ k_i KD_τ,i / N_kd

N are counts of the whole optimizer step, over micro-batches and workers, so that the loss does not depend on how a
batch is cut: N_ce the supervised tokens of the corpus, N_kd all supervised ones (or those with a KD term, by setting).
Logits exist for one chunk of tokens at a time; the gradients of hidden states and head are computed in the same pass,
so no `[tokens, vocabulary]` tensor is ever made. All softmax arithmetic is float32. Gradients of float16 states are
multiplied by about N until the backward pass: p / N is often below what float16 has, and the loss is not scaled yet.

The buffers of a `Workspace` are used again for every chunk. What each holds for one chunk of n tokens, top to bottom;
a blank is "as above", and U are the ids that both vocabularies have:

    after                logits [n, V]   s [n, V]             tempered, s_tempered [n, U]   teacher, t [n, U]
    student's head       logits
    its softmax          log p           p
    its softmax at τ                                          log p, p of logits / τ
    teacher's head                                                                          logits / τ, -
    its softmax                                                                             log p, p
    divergence                                                                              dKD/dz in one of the two
    sum of both terms                    dL/dlogits
    soft cap (if any)    logits          dL/d(hidden Wᵀ)

`tempered` and `s_tempered` are left out where τ = 1 and V = U: the divergence then reads `logits` and `s`. A divergence
may overwrite the teacher's two buffers and has one of its own (`m` of JSD).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lingu_ray.distill.divergence import DivergenceFn
from lingu_ray.distill.head import OutputHead, add_product_
from lingu_ray.distill.transfer import send
from lingu_ray.distill.workspace import Workspace

_CHUNK_ELEMENTS, _GPU_CHUNK_ELEMENTS = 2**23, 2**26
"""Logits held at a time on a CPU, and on a GPU, where a chunk is twenty launches: 32 and 256 MiB in float32.

More where the head is wide, see `_rows`.
"""


@dataclass(frozen=True)
class TeacherOutput:
    """The teacher's final hidden states for M of the N supervised tokens.

    `kd_mask_N` (bool, on the CPU) marks them, `hidden_MD` are the states in the same order, `head` the teacher's output
    head. Ids below both vocabularies are shared; both distributions are renormalized over them.
    """

    hidden_MD: Tensor
    head: OutputHead
    kd_mask_N: Tensor


@dataclass(frozen=True)
class LossScales:
    """What each token's terms are multiplied by, normalization and weights included (float32).

    `ce_N`: w_ce · c_i / N_ce of each supervised token. `kd_M`: w_kd · k_i / N_kd of each with a KD term (τ² is applied
    in the loss). `temperature`: τ, of the KD term alone.
    """

    ce_N: Tensor
    kd_M: Tensor
    temperature: float


@dataclass(frozen=True)
class LossTerms:
    """`loss` (scalar, differentiable), and per token, detached: `ce_N` in nats, `kd_M` the divergence without τ²."""

    loss: Tensor
    ce_N: Tensor
    kd_M: Tensor


def ce_kd_loss(
    hidden_ND: Tensor,
    head: OutputHead,
    labels_N: Tensor,
    scales: LossScales,
    teacher: TeacherOutput | None,
    divergence: DivergenceFn,
    most_logits: int | None = None,
) -> LossTerms:
    """Fused CE + KD over the supervised tokens (arXiv 2604.00829, Figure 3).

    `hidden_ND`: the student's final hidden states at the positions that predict `labels_N`; any float dtype.
    `head`: its output head. Gradients reach hidden states and the head's weight alone, where they are required.
    `most_logits`: that are held at a time; None: `logits_at_a_time` of the device.
    """
    weight_VD = head.weight_VD
    if not torch.is_grad_enabled():
        hidden_ND, weight_VD = hidden_ND.detach(), weight_VD.detach()
    most_logits = most_logits or logits_at_a_time(hidden_ND.is_cuda)
    task = _Task(head, labels_N, scales, teacher, divergence, most_logits)
    return LossTerms(*_FusedLoss.apply(hidden_ND, weight_VD, task))


@dataclass(frozen=True)
class _Task:
    """The arguments of `ce_kd_loss` that have no gradient."""

    head: OutputHead
    labels_N: Tensor
    scales: LossScales
    teacher: TeacherOutput | None
    divergence: DivergenceFn
    most_logits: int


def logits_at_a_time(on_gpu: bool) -> int:
    """Logits that a chunk of tokens has at most."""
    return _GPU_CHUNK_ELEMENTS if on_gpu else _CHUNK_ELEMENTS


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, task: _Task) -> tuple[Tensor, Tensor, Tensor]:
        need_hidden, need_weight, _ = ctx.needs_input_grad
        scales = task.scales
        order_N = _kd_first(task, hidden_ND.device)
        hidden, labels_N1, ce_scale_N1 = hidden_ND[order_N], task.labels_N[order_N, None], scales.ce_N[order_N, None]
        magnified = _magnification(scales) if hidden.dtype == torch.float16 else None
        head = task.head.cast(hidden.dtype)
        work = Workspace(hidden.device)
        kd = _KD(task, work)
        if magnified is not None:
            ce_scale_N1, kd.slope_M1 = ce_scale_N1 * magnified, kd.slope_M1 * magnified
        ce_N1, kd_M = torch.empty_like(ce_scale_N1), ce_scale_N1.new_empty(kd.tokens)
        empty = torch.empty_like if len(hidden) else torch.zeros_like
        grad_hidden = empty(hidden) if need_hidden else None
        grad_weight_VD = empty(weight_VD, dtype=torch.float32) if need_weight else None
        for cut in _cuts(kd.tokens, len(hidden), _rows(head, task.most_logits)):
            hidden_nD, label_n1, ce_scale_n1 = hidden[cut], labels_N1[cut], ce_scale_N1[cut]
            logits_nV = head.logits(hidden_nD, work.room("logits", len(hidden_nD), head.vocabulary))
            log_z_n1, log_s_nV, s_nV = _distribution(logits_nV, work.like("s", logits_nV))
            ce_N1[cut] = -log_s_nV.gather(1, label_n1)
            grad_kd_nU = None
            if cut.start < kd.tokens:
                kd_M[cut], grad_kd_nU = kd.compare(log_s_nV, s_nV, cut)
            if not (need_hidden or need_weight):
                continue
            grad_nV = s_nV.mul_(ce_scale_n1).scatter_add_(1, label_n1, -ce_scale_n1)
            if grad_kd_nU is not None:
                grad_nV[:, : grad_kd_nU.shape[1]].addcmul_(grad_kd_nU, kd.slope_M1[cut])
            if head.softcap is not None:
                logits_nV = log_s_nV.add_(log_z_n1)  # as they were
            grad = head.pull_back_(grad_nV, logits_nV).to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad, head.weight_VD, out=grad_hidden[cut])
            if grad_weight_VD is not None:
                add_product_(grad_weight_VD, grad.T, hidden_nD, beta=float(cut.start > 0))
        ce_N = torch.empty_like(scales.ce_N)
        ce_N[order_N] = ce_N1.squeeze(1)
        loss = (ce_N * scales.ce_N).sum() + (kd_M * scales.kd_M[: kd.tokens]).sum() * scales.temperature**2
        if grad_hidden is not None and isinstance(order_N, Tensor):
            grad_hidden = torch.empty_like(hidden).index_copy_(0, order_N, grad_hidden)
        ctx.save_for_backward(grad_hidden, grad_weight_VD)
        ctx.dtypes, ctx.magnified = (hidden_ND.dtype, weight_VD.dtype), magnified
        ctx.mark_non_differentiable(ce_N, kd_M)
        return loss, ce_N, kd_M

    @staticmethod
    @once_differentiable
    # pyrefly: ignore [bad-override]  (the base class names no parameters)
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        grad_loss = grad_outputs[0]
        hidden, weight = ctx.saved_tensors
        if ctx.magnified is not None:
            grad_loss = grad_loss / ctx.magnified
            hidden = None if hidden is None else hidden.float()  # the usual loss scale, 2^16, is beyond float16
        if grad_loss.is_cuda or grad_loss != 1:  # comparing would wait for the GPU
            # in place, to save memory; autograd refuses a second backward pass, since the saved tensors changed
            hidden, weight = (None if grad is None else grad.mul_(grad_loss) for grad in (hidden, weight))
        grads = zip((hidden, weight), ctx.dtypes, strict=True)
        return *(None if grad is None else grad.to(dtype) for grad, dtype in grads), None


def _magnification(scales: LossScales) -> Tensor:
    """The power of two by which dL/dlogits of any token are at most about 1: about N, found without a read."""
    least = scales.ce_N.new_full((1,), 2.0**-40)  # where there are no tokens, or all scales are 0
    largest = torch.cat([scales.ce_N, scales.kd_M * scales.temperature, least]).amax()
    return torch.exp2(-largest.log2().ceil())


class _KD:
    """Compares chunks of the student's tokens with the teacher.

    `tokens`: M, 0 without a teacher. `slope_M1`: dL/dlogits = slope · dKD/dz.
    """

    def __init__(self, task: _Task, work: Workspace):
        self.temperature, self.divergence, self.work = task.scales.temperature, task.divergence, work
        self.slope_M1 = task.scales.kd_M.unsqueeze(1) * self.temperature  # τ² and dz/dlogits = 1/τ
        self.tokens = 0
        if task.teacher is not None:
            self.tokens, self.hidden_MD = len(task.teacher.hidden_MD), task.teacher.hidden_MD
            self.head = task.teacher.head.first(task.head.vocabulary).cast(self.hidden_MD.dtype)

    def compare(self, log_s_nV: Tensor, s_nV: Tensor, cut: slice) -> tuple[Tensor, Tensor]:
        """Divergences `[n]` and their gradients `[n, U]` with respect to logits / τ, over the U ids shared.

        `log_s_nV`, `s_nV`: the student's distribution at τ = 1 over all its ids, only read.
        """
        shared, tau, work = self.head.vocabulary, self.temperature, self.work
        log_s_nU, s_nU = log_s_nV, s_nV
        if tau != 1 or shared != log_s_nV.shape[1]:
            tempered_nU = work.room("tempered", len(log_s_nV), shared)
            torch.div(log_s_nV[:, :shared], tau, out=tempered_nU)
            _, log_s_nU, s_nU = _distribution(tempered_nU, work.like("s_tempered", tempered_nU))
        teacher_nU = self.head.logits(self.hidden_MD[cut], work.like("teacher", s_nU))
        if tau != 1:
            teacher_nU.div_(tau)
        _, log_t_nU, t_nU = _distribution(teacher_nU, work.like("t", teacher_nU))
        return self.divergence(log_s_nU, s_nU, log_t_nU, t_nU, work)


def _distribution(logits_nV: Tensor, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log Z `[n, 1]`, log-probabilities (in place of the logits) and probabilities (in `out`) of a softmax.

    One exponential for each logit: log Z follows from the likeliest id, for which log p = logit − log Z.
    """
    p_nV = torch.softmax(logits_nV, -1, out=out)
    log_z_n1 = logits_nV.amax(-1, keepdim=True).sub_(p_nV.amax(-1, keepdim=True).log_())
    return log_z_n1, logits_nV.sub_(log_z_n1), p_nV


def _kd_first(task: _Task, device: torch.device) -> Tensor | slice:
    """An order of the tokens in which all of a chunk's tokens have a KD term, or none; their own where that will do."""
    if task.teacher is None or len(task.teacher.hidden_MD) == len(task.labels_N):
        return slice(None)
    order_N = task.teacher.kd_mask_N.long().argsort(descending=True, stable=True)
    return send({"order_N": order_N}, device)["order_N"]


def _rows(head: OutputHead, most_logits: int) -> int:
    """Tokens of a chunk: so many that reading the head for each chunk costs less than the chunk's own arithmetic."""
    return max(1, most_logits // head.vocabulary, head.weight_VD.shape[1] // 4)


def _cuts(with_kd: int, total: int, rows: int) -> Iterator[slice]:
    for first, last in ((0, with_kd), (with_kd, total)):
        for begin in range(first, last, rows):
            yield slice(begin, min(begin + rows, last))
