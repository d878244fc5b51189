"""Mixing by computation: turns of sources within bounds of their weights, permutations that are drawn evenly."""

from collections import Counter
from fractions import Fraction
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingu_ray.corpus.mix import Permutation, turns_of


def order_of(sizes: list[int], weights: list[float] | None, rows: int | None) -> list[int]:
    """Source at each position, by asking each source for its turns."""
    turns, length = turns_of(sizes, weights, rows)
    of_source = [[turns.position(i, turn) for turn in range(turns.count(i, length))] for i in range(len(sizes))]
    at = {position: source for source, positions in enumerate(of_source) for position in positions}
    assert sorted(at) == list(range(length)) and sum(map(len, of_source)) == length  # each position once
    assert all(positions == sorted(positions) for positions in of_source)
    return [at[position] for position in range(length)]


def largest_deviation(order: list[int], weights: list[float]) -> Fraction:
    """Largest |count − share × length| over all prefixes and sources, in exact arithmetic."""
    total = sum(map(Fraction, weights))
    counts, worst = [0] * len(weights), Fraction(0)
    for n, taken in enumerate(order, 1):
        counts[taken] += 1
        worst = max(worst, *(abs(c - Fraction(w) / total * n) for c, w in zip(counts, weights, strict=True)))
    return worst


@given(st.lists(st.floats(1e-4, 1e2), min_size=1, max_size=9), st.integers(1, 200))
def test_every_prefix_is_close_to_the_weights(weights: list[float], length: int):
    """Any weights, skewed ones too: in every prefix no source is off by two rows, of up to three sources by one."""
    order = order_of([1] * len(weights), weights, length)
    assert largest_deviation(order, weights) < (1 if len(weights) <= 3 else 2)


def test_weights_hold_in_every_ten_rows():
    """Weights 0.6, 0.3, 0.1 over ten rows give 6, 3, 1: in the first ten, the next ten, and so on."""
    order = order_of([1, 1, 1], [0.6, 0.3, 0.1], 100)
    for start in range(0, 100, 10):
        assert Counter(order[start : start + 10]) == {0: 6, 1: 3, 2: 1}


def test_without_weights_each_row_comes_exactly_once():
    """Shares by size end with exactly the sizes."""
    assert Counter(order_of([7, 100, 31], None, None)) == {0: 7, 1: 100, 2: 31}


def test_with_weights_it_ends_when_every_source_was_seen():
    """The last position completes the source that needs longest; the others repeat by their weight."""
    sizes, weights = [10, 40, 5], [0.5, 0.25, 0.25]
    order = order_of(sizes, weights, None)
    counts = Counter(order)
    assert all(counts[source] >= size for source, size in enumerate(sizes))
    assert counts[1] == 40 and order[-1] == 1
    assert abs(counts[0] - 0.5 * len(order)) < 1


def test_length_may_be_set():
    """`rows` is the length of the order, shorter or longer than the data."""
    assert len(order_of([10, 10], [3.0, 1.0], 25)) == 25
    assert len(order_of([10, 10], None, 50)) == 50


def test_the_order_is_that_of_corpora_that_are_built():
    """Another one is another corpus, which needs another VERSION (`corpus/store.py`): by that corpora are named."""
    assert order_of([4, 1, 3, 2], None, None) == [3, 0, 2, 0, 1, 2, 0, 3, 0, 2]
    assert [Permutation(10, "a")(number) for number in range(10)] == [2, 4, 7, 3, 8, 5, 6, 1, 0, 9]


def test_a_permutation_takes_neighbors_apart():
    """Of many rows, too: the first hundred of a thousand come in each tenth of the order."""
    order = [Permutation(1000, "a")(number) for number in range(100)]
    assert {place // 100 for place in order} == set(range(10))


@pytest.mark.parametrize("size", [1, 2, 3, 64, 65, 1000])
def test_a_permutation_has_every_number_once(size: int):
    """Of any size; another key gives another order, and the same key the same."""
    orders = [[Permutation(size, key)(number) for number in range(size)] for key in ("a", "b", "a")]
    assert all(sorted(order) == list(range(size)) for order in orders)
    assert orders[0] == orders[2] and (orders[0] != orders[1] or size < 4)


@pytest.mark.slow
def test_permutations_are_drawn_evenly():
    """Over 2400 keys each of the 24 orders of four rows comes about 100 times (χ² below its 99.99 % quantile)."""
    counts = Counter(tuple(map(Permutation(4, str(key)), range(4))) for key in range(2400))
    assert sum((counts[order] - 100) ** 2 / 100 for order in permutations(range(4))) < 59
