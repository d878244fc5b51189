from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lingu_ray.corpus.mix import interleave, order_of_sources, picks, shuffled


def largest_deviation(order: np.ndarray, weights: list[float]) -> Fraction:
    """Largest |count − share × length| over all prefixes and sources, in exact arithmetic."""
    total = sum(map(Fraction, weights))
    worst = Fraction(0)
    for source, weight in enumerate(weights):
        counts = np.cumsum(order == source)
        share = Fraction(weight) / total
        worst = max(worst, *(abs(int(count) - share * n) for n, count in enumerate(counts, 1)))
    return worst


@given(st.lists(st.floats(1e-4, 1e2), min_size=1, max_size=9), st.integers(1, 200))
def test_every_prefix_is_within_one_row_of_the_weights(weights: list[float], length: int):
    """Any weights, skewed ones too: in every prefix no source is off by more than Tijdeman's 1 − 1/(2k − 2) rows."""
    bound = 1 - Fraction(1, max(2 * len(weights) - 2, 1))
    assert largest_deviation(interleave(weights, length), weights) <= bound + Fraction(1, 10**6)


def test_weights_hold_in_every_ten_rows():
    """Weights 0.6, 0.3, 0.1 over ten rows give 6, 3, 1: in the first ten, the next ten, and so on."""
    order = interleave([0.6, 0.3, 0.1], 100)
    for start in range(0, 100, 10):
        assert np.bincount(order[start : start + 10]).tolist() == [6, 3, 1]


def test_without_weights_each_row_comes_exactly_once():
    """Proportional shares end with exactly the sizes."""
    order = order_of_sources([7, 100, 31], None, None)
    assert np.bincount(order).tolist() == [7, 100, 31]


def test_with_weights_it_ends_when_every_source_was_seen():
    """The last position completes the source that needs longest; the others repeat by their weight."""
    sizes, weights = [10, 40, 5], [0.5, 0.25, 0.25]
    order = order_of_sources(sizes, weights, None)
    counts = np.bincount(order)
    assert (counts >= sizes).all()
    assert counts[1] == 40 and order[-1] == 1
    assert abs(counts[0] - 0.5 * len(order)) < 1


def test_length_may_be_set():
    """`rows` is the length of the order, shorter or longer than the data."""
    assert len(order_of_sources([10, 10], [3.0, 1.0], 25)) == 25
    assert len(order_of_sources([10, 10], None, 50)) == 50


def test_picks_visit_every_row_once_a_pass_in_new_orders():
    """Each full pass is a permutation, passes differ, and seed and name change them."""
    chosen = picks(50, 120, seed=3, name="a")
    assert sorted(chosen[:50]) == sorted(chosen[50:100]) == list(range(50))
    assert chosen[:50].tolist() != chosen[50:100].tolist()
    assert len(set(chosen[100:])) == 20
    assert picks(50, 120, 3, "a").tolist() == chosen.tolist()
    assert picks(50, 120, 4, "a").tolist() != chosen.tolist()
    assert picks(50, 120, 3, "b").tolist() != chosen.tolist()
    assert len(picks(50, 0, 3, "a")) == 0


def test_uses_draw_independently():
    """The held-out rows are not the first rows of the first pass."""
    assert shuffled(100, 0, "a", "validation").tolist() != shuffled(100, 0, "a", 0).tolist()
