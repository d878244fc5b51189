"""The fused loss against an independent, slow reference in float64 with autograd."""

import pytest
import torch

from lingu_ray.config import DistillConfig
from lingu_ray.distill import loss as loss_module
from lingu_ray.distill.divergence import divergence_of
from lingu_ray.distill.loss import LossScales, TeacherAnswer, ce_kd_loss

N, D, V, U = 11, 8, 37, 31
DIVERGENCES = [("forward_kl", 0.5), ("reverse_kl", 0.5), ("jsd", 0.5), ("jsd", 0.1), ("jsd", 0.9)]


def reference_divergence(s, t, kind, beta):
    """Divergence of two probability vectors, term by term from its definition."""
    kl = lambda p, q: sum(a * (a / b).log() for a, b in zip(p, q, strict=True))  # noqa: E731
    if kind == "forward_kl":
        return kl(t, s)
    if kind == "reverse_kl":
        return kl(s, t)
    m = beta * t + (1 - beta) * s
    return beta * kl(t, m) + (1 - beta) * kl(s, m)


def reference_loss(hidden, head, labels, ce_scale, kd_scale, tau, teacher_hidden, teacher_head, answered, kind, beta):
    """The loss as method.md writes it, a token at a time, in float64."""
    total = torch.zeros((), dtype=torch.float64)
    shared = min(len(head), len(teacher_head))
    m = 0
    for n in range(len(hidden)):
        logits = head @ hidden[n]
        total = total - ce_scale[n] * torch.log_softmax(logits, 0)[labels[n]]
        if answered[n]:
            s = torch.softmax(logits[:shared] / tau, 0)
            t = torch.softmax((teacher_head @ teacher_hidden[m])[:shared] / tau, 0)
            total = total + kd_scale * tau**2 * reference_divergence(s, t, kind, beta)
            m += 1
    return total


def problem(seed=0, v=V, u=U, scale=1.0):
    """Random hidden states, heads, labels and a mask of answered tokens, in float64."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64) * scale  # noqa: E731
    answered = torch.rand(N, generator=g) < 0.6
    return {
        "hidden": draw(N, D),
        "head": draw(v, D),
        "labels": torch.randint(v, (N,), generator=g),
        "ce_scale": torch.rand(N, generator=g, dtype=torch.float64),
        "teacher_hidden": draw(int(answered.sum()), D),
        "teacher_head": draw(u, D),
        "answered": answered,
    }


def fused(p, kind, beta, tau, kd_scale, dtype=torch.float32):
    """Loss and gradients of the fused function."""
    hidden = p["hidden"].to(dtype).requires_grad_()
    head = p["head"].to(dtype).requires_grad_()
    answer = TeacherAnswer(p["teacher_hidden"].to(dtype), p["teacher_head"].to(dtype), p["answered"])
    scales = LossScales(p["ce_scale"].float(), kd_scale, tau)
    settings = DistillConfig(divergence=kind, beta=beta)
    terms = ce_kd_loss(hidden, head, p["labels"], scales, answer, divergence_of(settings))
    terms.loss.backward()
    return terms, hidden.grad, head.grad


@pytest.mark.parametrize(("kind", "beta"), DIVERGENCES)
@pytest.mark.parametrize("tau", [1.0, 2.5])
@pytest.mark.parametrize(("v", "u"), [(V, U), (U, V), (V, V)])
def test_value_and_gradients_match_reference(kind, beta, tau, v, u):
    """Loss and gradients of hidden states and head equal float64 autograd; vocabularies may differ either way."""
    p = problem(v=v, u=u)
    terms, grad_hidden, grad_head = fused(p, kind, beta, tau, 0.3)
    hidden, head = p["hidden"].clone().requires_grad_(), p["head"].clone().requires_grad_()
    expected = reference_loss(
        hidden, head, p["labels"], p["ce_scale"], 0.3, tau, p["teacher_hidden"], p["teacher_head"], p["answered"],
        kind, beta,
    )  # fmt: skip
    expected.backward()
    torch.testing.assert_close(terms.loss.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad_hidden.double(), hidden.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(grad_head.double(), head.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "beta"), DIVERGENCES)
def test_zero_when_equal_and_never_negative(kind, beta):
    """A true divergence: 0 with zero gradient for equal models, positive otherwise, also for bf16 inputs."""
    p = problem(u=V)
    p["ce_scale"].zero_()
    same = p | {"teacher_hidden": p["hidden"][p["answered"]], "teacher_head": p["head"]}
    terms, grad_hidden, _ = fused(same, kind, beta, 1.7, 1.0)
    assert terms.kd_M.abs().max() < 1e-6 and grad_hidden.abs().max() < 1e-5
    for scale in (0.1, 1.0, 6.0):
        terms, _, _ = fused(problem(scale=scale), kind, beta, 1.0, 1.0, torch.bfloat16)
        assert (terms.kd_M >= 0).all() and torch.isfinite(terms.kd_M).all()


def test_chunks_do_not_matter(monkeypatch):
    """The result does not depend on how many tokens' logits exist at a time."""
    whole = fused(problem(), "forward_kl", 0.5, 2.0, 1.0)
    monkeypatch.setattr(loss_module, "_CHUNK_ELEMENTS", 2 * V)
    parts = fused(problem(), "forward_kl", 0.5, 2.0, 1.0)
    for a, b in zip((whole[0].loss, *whole[1:]), (parts[0].loss, *parts[1:]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_teacher_gets_no_gradient_and_plain_ce_is_pytorchs():
    """Without an answer the loss is torch's cross-entropy; with one, nothing flows to the teacher's tensors."""
    p = problem()
    teacher_hidden = p["teacher_hidden"].float().requires_grad_()
    hidden = p["hidden"].float().requires_grad_()
    scales = LossScales(torch.full((N,), 1 / N), 1.0, 1.0)
    head = p["head"].float()
    plain = ce_kd_loss(hidden, head, p["labels"], scales, None, divergence_of(DistillConfig()))
    torch.testing.assert_close(plain.loss, torch.nn.functional.cross_entropy(hidden @ head.T, p["labels"]))
    answer = TeacherAnswer(teacher_hidden, p["teacher_head"].float(), p["answered"])
    ce_kd_loss(hidden, head, p["labels"], scales, answer, divergence_of(DistillConfig())).loss.backward()
    assert teacher_hidden.grad is None and hidden.grad is not None
