"""The fused loss against an independent, slow reference in float64 with autograd."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lingu_ray.distill import loss as loss_module
from lingu_ray.distill.divergence import divergence_of
from lingu_ray.distill.head import OutputHead
from lingu_ray.distill.loss import LossScales, TeacherOutput, ce_kd_loss

N, D, V, U = 9, 8, 37, 31
DIVERGENCES = [("forward_kl", 0.5), ("reverse_kl", 0.5), ("jsd", 0.5), ("jsd", 0.1), ("jsd", 0.9), ("tv", 0.5)]
HEADS = {"plain": {}, "scaled": {"scale": 0.3}, "capped": {"scale": 1.5, "softcap": 2.0}}


def reference_divergence(s, t, kind, beta):
    """Divergence of two probability vectors, from its definition."""
    kl = lambda p, q: (p * (p / q).log()).sum()  # noqa: E731
    if kind == "tv":
        return (s - t).abs().sum() / 2
    if kind == "forward_kl":
        return kl(t, s)
    if kind == "reverse_kl":
        return kl(s, t)
    m = beta * t + (1 - beta) * s
    return beta * kl(t, m) + (1 - beta) * kl(s, m)


def reference_logits(weight, hidden, scale=1.0, softcap=None):
    """Logits of one token."""
    logits = scale * (weight @ hidden)
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def with_bucket(p, chosen):
    """The probabilities of the chosen ids, and of all others together."""
    return torch.cat([p[chosen], (p.sum() - p[chosen].sum())[None]])


def reference_loss(p, hidden, weight, head, tau, kind, beta, top_k):
    """The loss as its definition writes it, a token at a time, in float64."""
    total = torch.zeros((), dtype=torch.float64)
    shared = min(len(weight), len(p["teacher_weight"]))
    m = 0
    for n in range(len(hidden)):
        logits = reference_logits(weight, hidden[n], **head)
        total = total - p["ce_scale"][n] * torch.log_softmax(logits, 0)[p["labels"][n]]
        if p["answered"][n]:
            teacher_logits = reference_logits(p["teacher_weight"], p["teacher_hidden"][m], **head)
            s, t = (torch.softmax(z[:shared] / tau, 0) for z in (logits, teacher_logits))
            if top_k is not None and top_k < shared:
                chosen = t.argsort(descending=True)[:top_k]
                s, t = with_bucket(s, chosen), with_bucket(t, chosen)
            total = total + p["kd_scale"][m] * tau**2 * reference_divergence(s, t, kind, beta)
            m += 1
    return total


def problem(seed=0, v=V, u=U, scale=1.0):
    """Random hidden states, heads, labels, scales and a mask of answered tokens, in float64."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64) * scale  # noqa: E731
    answered = torch.rand(N, generator=g) < 0.6
    M = int(answered.sum())
    return {
        "hidden": draw(N, D),
        "weight": draw(v, D),
        "labels": torch.randint(v, (N,), generator=g),
        "ce_scale": torch.rand(N, generator=g, dtype=torch.float64),
        "kd_scale": torch.rand(M, generator=g, dtype=torch.float64),
        "teacher_hidden": draw(M, D),
        "teacher_weight": draw(u, D),
        "answered": answered,
    }


def fused(p, kind, beta, tau, top_k=None, head=None, dtype=torch.float32):
    """Terms, and gradients of hidden states and weight, of the fused function."""
    head = head or {}
    hidden = p["hidden"].to(dtype).requires_grad_()
    weight = p["weight"].to(dtype).requires_grad_()
    teacher = OutputHead(p["teacher_weight"].to(dtype), **head)
    answer = TeacherOutput(p["teacher_hidden"].to(dtype), teacher, p["answered"])
    scales = LossScales(p["ce_scale"].float(), p["kd_scale"].float(), tau)
    divergence = divergence_of(kind, beta, top_k)
    terms = ce_kd_loss(hidden, OutputHead(weight, **head), p["labels"], scales, answer, divergence)
    terms.loss.backward()
    return terms, hidden.grad, weight.grad


def check_against_reference(p, kind, beta, tau, top_k, head):
    """Loss and both gradients equal float64 autograd."""
    terms, grad_hidden, grad_weight = fused(p, kind, beta, tau, top_k, head)
    hidden, weight = p["hidden"].clone().requires_grad_(), p["weight"].clone().requires_grad_()
    expected = reference_loss(p, hidden, weight, head, tau, kind, beta, top_k)
    expected.backward()
    torch.testing.assert_close(terms.loss.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad_hidden.double(), hidden.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(grad_weight.double(), weight.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize(("kind", "beta"), DIVERGENCES)
@pytest.mark.parametrize(("v", "u"), [(V, U), (U, V), (V, V)])
def test_value_and_gradients_match_reference(kind, beta, head, top_k, v, u):
    """Every divergence, head and vocabulary mismatch, at τ = 1 and τ = 2.5."""
    for tau in (1.0, 2.5):
        check_against_reference(problem(v=v, u=u), kind, beta, tau, top_k, head)


@pytest.mark.parametrize("top_k", [1, U - 1, U, V + 10])
def test_extreme_top_k_matches_reference(top_k):
    """One id against the rest, a rest of one id, and a k that covers all the ids shared."""
    for kind in ("forward_kl", "reverse_kl", "jsd", "tv"):
        check_against_reference(problem(), kind, 0.5, 1.0, top_k, {})


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd", "tv"])
@pytest.mark.parametrize("tau", [1.0, 1.7])
def test_equal_models_have_no_kd(kind, tau):
    """Student = teacher: divergence and gradient are 0 in float32, and 0 for equal bfloat16 inputs too."""
    p = problem(u=V)
    p["ce_scale"].zero_()
    same = p | {"teacher_hidden": p["hidden"][p["answered"]], "teacher_weight": p["weight"]}
    for dtype in (torch.float32, torch.bfloat16):
        terms, grad_hidden, _ = fused(same, kind, 0.5, tau, dtype=dtype)
        assert terms.kd_M.abs().max() < 1e-6 and grad_hidden.abs().max() < 1e-5


@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize(("kind", "beta"), DIVERGENCES)
def test_never_negative(kind, beta, top_k):
    """Divergences of bfloat16 inputs are finite and never below 0, from nearly flat to nearly one-hot softmaxes."""
    for scale in (0.1, 1.0, 6.0):
        terms, grad_hidden, _ = fused(problem(scale=scale), kind, beta, 1.0, top_k, dtype=torch.bfloat16)
        assert (terms.kd_M >= 0).all() and torch.isfinite(terms.kd_M).all() and torch.isfinite(grad_hidden).all()


def test_bfloat16_inputs_are_near_the_reference():
    """bfloat16 hidden states and head: the loss is off by no more than their rounding; gradients have their dtype."""
    p = {name: t.bfloat16().double() if t.is_floating_point() else t for name, t in problem().items()}
    terms, grad_hidden, grad_weight = fused(p, "jsd", 0.5, 2.0, dtype=torch.bfloat16)
    hidden, weight = p["hidden"].clone().requires_grad_(), p["weight"].clone().requires_grad_()
    expected = reference_loss(p, hidden, weight, {}, 2.0, "jsd", 0.5, None)
    expected.backward()
    assert terms.loss.dtype == torch.float32 and grad_hidden.dtype == grad_weight.dtype == torch.bfloat16
    torch.testing.assert_close(terms.loss.double(), expected.detach(), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(grad_hidden.double(), hidden.grad, rtol=0.05, atol=0.03)
    torch.testing.assert_close(grad_weight.double(), weight.grad, rtol=0.05, atol=0.03)


@pytest.mark.parametrize("loss_scale", [2.0**10, 2.0**16])
@pytest.mark.parametrize("w_ce", [0.0, 1.0])
def test_float16_loses_no_small_gradients(w_ce, loss_scale):
    """A probability over the number of tokens is below what float16 has; scaled as a GradScaler scales the loss, both
    gradients are as near to float64 as float16 rounds, and not infinite."""
    n, d, v = 4096, 16, 1024
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape, scale=1.0: (torch.randn(*shape, generator=g) * scale).half()  # noqa: E731
    states, weights = (draw(n, d), draw(n, d)), (draw(v, d, scale=0.3), draw(v, d, scale=0.3))
    labels_N = torch.randint(v, (n,), generator=g)
    hidden, weight = states[0].clone().requires_grad_(), weights[0].clone().requires_grad_()
    answer = TeacherOutput(states[1], OutputHead(weights[1]), torch.ones(n, dtype=torch.bool))
    scales = LossScales(torch.full((n,), w_ce / n), torch.full((n,), 1 / n), 2.0)
    terms = ce_kd_loss(hidden, OutputHead(weight), labels_N, scales, answer, divergence_of("forward_kl"))
    (terms.loss * loss_scale).backward()

    exact = [tensor.double().requires_grad_() for tensor in (states[0], weights[0])]
    logits = exact[0] @ exact[1].T
    log_s, log_t = (z.div(2).log_softmax(-1) for z in (logits, states[1].double() @ weights[1].double().T))
    ce = torch.nn.functional.cross_entropy(logits, labels_N)
    (w_ce * ce + 4 * (log_t.exp() * (log_t - log_s)).sum(-1).mean()).backward()
    for ours, theirs in zip((hidden, weight), exact, strict=True):
        error = ours.grad.double() / loss_scale - theirs.grad
        assert ours.grad.dtype == torch.float16 and error.norm() < 5e-4 * theirs.grad.norm()


@pytest.mark.parametrize("top_k", [None, 5])
def test_chunks_do_not_matter(monkeypatch, top_k):
    """The result does not depend on how many tokens' logits exist at a time."""
    whole = fused(problem(), "forward_kl", 0.5, 2.0, top_k)
    monkeypatch.setattr(loss_module, "_CHUNK_ELEMENTS", 2 * V)
    parts = fused(problem(), "forward_kl", 0.5, 2.0, top_k)
    assert len(list(loss_module._cuts(5, N, 2))) == 5  # 2, 2, 1 answered and 2, 2 unanswered tokens
    for a, b in zip((whole[0].loss, *whole[1:]), (parts[0].loss, *parts[1:]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_terms_are_in_the_tokens_order():
    """Per-token terms come in the order of the tokens, whichever of them were answered."""
    p = problem()
    terms, _, _ = fused(p, "forward_kl", 0.5, 1.0)
    logits = p["hidden"] @ p["weight"].T
    torch.testing.assert_close(
        terms.ce_N.double(), torch.nn.functional.cross_entropy(logits, p["labels"], reduction="none")
    )
    log_s = logits[p["answered"], :U].log_softmax(-1)
    log_t = (p["teacher_hidden"] @ p["teacher_weight"].T).log_softmax(-1)
    torch.testing.assert_close(terms.kd_M.double(), (log_t.exp() * (log_t - log_s)).sum(-1), rtol=1e-4, atol=1e-5)


def test_kd_weight_of_zero_is_no_kd():
    """Tokens whose KD scale is 0 have the gradient of cross-entropy alone: selection is a weight of 0."""
    p = problem()
    p["kd_scale"].zero_()
    terms, grad_hidden, _ = fused(p, "forward_kl", 0.5, 2.0)
    assert (terms.kd_M > 0).all()
    hidden = p["hidden"].clone().requires_grad_()
    ce = torch.nn.functional.cross_entropy(hidden @ p["weight"].T, p["labels"], reduction="none")
    (ce * p["ce_scale"]).sum().backward()
    torch.testing.assert_close(grad_hidden.double(), hidden.grad, rtol=1e-5, atol=1e-6)


def test_gradients_only_where_wanted():
    """Nothing flows to the teacher, to a frozen head or from single tokens; a scaled loss scales its gradient; no
    gradient is computed under no_grad."""
    p = {name: t.float() if t.is_floating_point() else t for name, t in problem().items()}
    teacher_hidden, hidden = p["teacher_hidden"].requires_grad_(), p["hidden"].requires_grad_()
    answer = TeacherOutput(teacher_hidden, OutputHead(p["teacher_weight"]), p["answered"])
    scales, head = LossScales(p["ce_scale"], p["kd_scale"], 1.0), OutputHead(p["weight"])
    divergence = divergence_of("forward_kl")
    terms = lambda: ce_kd_loss(hidden, head, p["labels"], scales, answer, divergence)  # noqa: E731
    (once,) = torch.autograd.grad(terms().loss, hidden)
    (3 * terms().loss).backward()
    assert teacher_hidden.grad is None and p["weight"].grad is None
    torch.testing.assert_close(hidden.grad, 3 * once)
    assert not terms().ce_N.requires_grad and not terms().kd_M.requires_grad
    with FlopCounterMode(display=False) as training:
        terms()
    with torch.no_grad(), FlopCounterMode(display=False) as validation:
        assert not terms().loss.requires_grad
    assert validation.get_total_flops() < training.get_total_flops()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_tokens(dtype):
    """A micro-batch without supervised tokens: loss and gradients are 0."""
    hidden = torch.zeros(0, D, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, D, dtype=dtype, requires_grad=True)
    none = torch.zeros(0)
    answer = TeacherOutput(torch.zeros(0, D, dtype=dtype), OutputHead(torch.randn(U, D)), none.bool())
    scales = LossScales(none, none, 1.0)
    terms = ce_kd_loss(hidden, OutputHead(weight), none.long(), scales, answer, divergence_of("forward_kl"))
    terms.loss.backward()
    assert terms.loss == 0 and not weight.grad.any()
