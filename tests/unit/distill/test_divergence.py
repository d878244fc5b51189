"""Divergences by themselves: their definitions at the edges of float32."""

import pytest
import torch

from lingu_ray.distill.divergence import divergence_of
from lingu_ray.distill.workspace import Workspace

KINDS = ["forward_kl", "reverse_kl", "jsd", "tv"]
CPU = torch.device("cpu")


def of(logits_s, logits_t, kind, top_k=None, beta=0.5):
    """Value and gradient for logits at τ = 1."""
    log_s, log_t = logits_s.log_softmax(-1), logits_t.log_softmax(-1)
    divergence = divergence_of(kind, beta, top_k)
    return divergence(log_s, log_s.exp(), log_t, log_t.exp(), Workspace(CPU))


def draw(*shape, scale=1.0, seed=0):
    """Random logits."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("top_k", [None, 1, 4, 19])
@pytest.mark.parametrize("kind", KINDS)
def test_zero_exactly_where_equal(kind, top_k):
    """0 with a gradient of 0 for equal distributions, above 0 for others."""
    logits = draw(6, 20, scale=3)
    value, grad = of(logits, logits, kind, top_k)
    assert value.abs().max() < 1e-6 and grad.abs().max() < 1e-6
    value, grad = of(draw(6, 20, seed=1), logits, kind, top_k)
    assert (value > 1e-3).all() and (grad.abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("top_k", [None, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_add_up_to_zero(kind, top_k):
    """A constant added to all logits changes nothing, so each token's gradient sums to 0."""
    _, grad = of(draw(6, 20, scale=3), draw(6, 20, scale=3, seed=1), kind, top_k)
    torch.testing.assert_close(grad.sum(-1), torch.zeros(6), rtol=0, atol=1e-5)


def test_bounds_and_symmetry():
    """TV and JSD(½) are symmetric; TV is at most 1 and JSD(½) at most ln 2, reached by disjoint distributions."""
    a, b = draw(5, 9), draw(5, 9, seed=1)
    for kind, bound in (("tv", 1.0), ("jsd", torch.log(torch.tensor(2.0)).item())):
        torch.testing.assert_close(of(a, b, kind)[0], of(b, a, kind)[0])
        disjoint, _ = of(torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]]), kind)
        assert disjoint.item() == pytest.approx(bound, abs=1e-6)


def test_jsd_goes_from_forward_to_reverse_kl():
    """JSD(β) / β → KL(T‖S) as β → 0, and JSD(β) / (1 − β) → KL(S‖T) as β → 1 (GKD, section 2)."""
    a, b = draw(5, 9), draw(5, 9, seed=1)
    torch.testing.assert_close(of(a, b, "jsd", beta=1e-3)[0] * 1e3, of(a, b, "forward_kl")[0], rtol=0.02, atol=0)
    torch.testing.assert_close(of(a, b, "jsd", beta=1 - 1e-3)[0] * 1e3, of(a, b, "reverse_kl")[0], rtol=0.02, atol=0)


@pytest.mark.parametrize("top_k", [None, 1, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_that_underflow_do_no_harm(kind, top_k):
    """Logits hundreds apart, so that most probabilities (and a bucket of them) are 0 in float32: all stays finite."""
    a, b = draw(6, 9, scale=300), draw(6, 9, scale=300, seed=1)
    for student, teacher in ((a, b), (a, a), (a, torch.zeros_like(a)), (torch.zeros_like(a), b)):
        value, grad = of(student, teacher, kind, top_k)
        assert torch.isfinite(value).all() and (value >= 0).all() and torch.isfinite(grad).all()


@pytest.mark.parametrize("kind", KINDS)
def test_top_k_that_covers_all_is_plain(kind):
    """k = V, k above V and k = V − 1 (a bucket of one id) give the plain value and gradient."""
    a, b = draw(6, 20, scale=2), draw(6, 20, scale=2, seed=1)
    value, grad = of(a, b, kind)
    for top_k in (19, 20, 500):
        same_value, same_grad = of(a, b, kind, top_k)
        torch.testing.assert_close(same_value, value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(same_grad, grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_top_k_is_at_most_plain(kind):
    """Merging outcomes loses information: the divergence never grows, and grows back with k."""
    a, b = draw(6, 20, scale=2), draw(6, 20, scale=2, seed=1)
    values = torch.stack([of(a, b, kind, k)[0] for k in (1, 3, 9, 19, 20)])
    assert (values.diff(dim=0) > -1e-6).all() and (values[0] < values[-1]).all()
