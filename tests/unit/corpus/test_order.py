"""The global order: the same for every cut of the files into file splits, and of the rows into blocks."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingu_ray.config import CorpusConfig, SourceConfig
from lingu_ray.corpus.normalize import NORMALIZED
from lingu_ray.corpus.order import VALIDATION, GlobalOrder, SourceOrder, doubts, draw_order
from lingu_ray.errors import UserError

NAMES = ("a", "b", "c")
HELD_OUT = 2
TEXT = {"format": "text"}
Cuts = list[list[int]]
"""By source: sizes of its file splits."""


@st.composite
def drawn_cuts(draw: st.DrawFn) -> tuple[Cuts, Cuts]:
    """The rows of one to three sources in file splits, cut in two ways."""

    def cut(rows: int) -> list[int]:
        bars = sorted(draw(st.sets(st.integers(1, rows - 1), max_size=5)))
        return np.diff([0, *bars, rows]).tolist()

    sizes = draw(st.lists(st.integers(HELD_OUT + 1, 30), min_size=1, max_size=len(NAMES)))
    return [cut(size) for size in sizes], [cut(size) for size in sizes]


def keys_of(cuts: Cuts) -> dict[str, list[int]]:
    """The rows' keys as a build makes them: number of the file split over all sources, index in it."""
    keys: dict[str, list[int]] = {}
    split = 0
    for name, sizes in zip(NAMES, cuts, strict=False):
        keys[name] = []
        for size in sizes:
            keys[name] += [split << 32 | index for index in range(size)]
            split += 1
    return keys


def order_of(cuts: Cuts, weights: list[float], rows: int | None) -> GlobalOrder:
    """The order of sources with these weights (none: by size)."""
    good = {name: Counter(key >> 32 for key in keys) for name, keys in keys_of(cuts).items()}
    sources = tuple(
        SourceConfig(name=name, path="-", weight=weights[index] if weights else None, **TEXT)
        for index, name in enumerate(good)
    )
    return draw_order(CorpusConfig(sources=sources, validation_rows=HELD_OUT, rows=rows), sources, good)


def entries(order: GlobalOrder, cuts: Cuts) -> list[tuple[int, int, int]]:
    """Number of the row over all sources (which no cut changes), shard and position."""
    named = [(name, key) for name, keys in keys_of(cuts).items() for key in keys]
    return [(number, *place) for number, (name, key) in enumerate(named) for place in order.places(name, key)]


DRAWN = (
    drawn_cuts(),
    st.lists(st.floats(0.1, 10), min_size=3, max_size=3) | st.just([]),
    st.none() | st.integers(1, 90),
)


@pytest.mark.slow
@given(*DRAWN)
def test_the_order_does_not_depend_on_how_files_are_split(
    two: tuple[Cuts, Cuts], weights: list[float], rows: int | None
):
    """Any cut gives each row the same positions; every position is filled once, and no held-out row trains."""
    first, second = (entries(order_of(cuts, weights, rows), cuts) for cuts in two)
    assert first == second
    trained = [(row, position) for row, shard, position in first if shard != VALIDATION]
    held = [row for row, shard, _ in first if shard == VALIDATION]
    assert sorted(position for _, position in trained) == list(range(order_of(two[0], weights, rows).rows))
    assert len(set(held)) == len(held) == HELD_OUT * len(two[0])
    assert not {row for row, _ in trained} & set(held)


@pytest.mark.slow
@given(*DRAWN, st.sets(st.integers(1, 89), max_size=6))
def test_rows_are_assigned_alike_in_any_blocks(
    two: tuple[Cuts, Cuts], weights: list[float], rows: int | None, bars: set[int]
):
    """The rows of a build in one block or in several: together the same rows at the same positions."""
    order, keys = order_of(two[0], weights, rows), keys_of(two[0])
    bad = [{"key": key, "source": name, "reason": "bad_image"} for name, of_source in keys.items() for key in of_source]
    table = pa.Table.from_pylist([row | {"reason": None} for row in bad] + bad, NORMALIZED)
    edges = [0, *sorted(bar for bar in bars if bar < len(table)), len(table)]
    blocks = [table.slice(start, stop - start) for start, stop in pairwise(edges)]
    whole = pa.concat_tables(order.assign(table))
    assert pa.concat_tables(part for block in blocks for part in order.assign(block)).equals(whole)
    assert len(whole) == order.written


def test_a_small_source_that_comes_often_is_placed_a_few_rows_at_a_time():
    """A row with a picture that a thousand passes take is never there a thousand times at once."""
    picture = bytes(1 << 20)
    order = order_of([[HELD_OUT + 1], [1000]], [1.0, 1.0], rows=None)
    rows = [{"key": key, "source": "a", "images": [picture]} for key in keys_of([[HELD_OUT + 1]])["a"]]
    placed = [(len(part), part.nbytes) for part in order.assign(pa.Table.from_pylist(rows, NORMALIZED))]
    assert sum(count for count, _ in placed) > 900
    assert max(size for _, size in placed) < 100 << 20


def test_weights_that_repeat_most_rows_or_leave_a_source_out_are_told():
    """Of the order alone: what a build would write of it is told before, with the source and what to set."""

    def told(weights: list[float], rows: int | None = None) -> str:
        return "\n".join(doubts(CorpusConfig(rows=rows), order_of([[20], [20]], weights, rows)))

    assert not told([]) and not told([1, 0.5]) and not told([1, 0.001], rows=100_000)
    assert "there are 36 to train on" in told([1, 0.001]) and "until b was used once" in told([1, 0.001])
    assert int(told([1, 1e-9]).split()[0]) > 10**10  # counted, and not made
    assert told([1, 0.001], rows=100).startswith("of b no row is trained on")


def test_a_source_of_which_all_is_held_out_is_told():
    """Rows are held out of each source: one that has no more than those has nothing to train on."""
    few = rf"source b has {HELD_OUT} good rows, and corpus.validation_rows={HELD_OUT} are held out .* no row is left"
    with pytest.raises(UserError, match=few):
        order_of([[20], [HELD_OUT]], [], None)
    assert order_of([[20], [HELD_OUT + 1]], [], None).sources["b"].held_out == HELD_OUT


def test_no_row_comes_twice_before_all_of_its_source_came():
    """A source that repeats: each pass has every row once, in a new order; another seed or name, others."""
    chosen = passes_of(SourceOrder("a", 3, 52, 2, 120, {0: 0}))
    assert sorted(chosen[:50]) == sorted(chosen[50:100]) == sorted(set(chosen))
    assert chosen[:50] != chosen[50:100] and len(set(chosen[100:])) == 20
    assert chosen == passes_of(SourceOrder("a", 3, 52, 2, 120, {0: 0}))
    for other in (SourceOrder("a", 4, 52, 2, 120, {0: 0}), SourceOrder("b", 3, 52, 2, 120, {0: 0})):
        assert chosen != passes_of(other)


def test_held_out_rows_are_the_same_under_every_seed():
    """So that validations of runs that differ in their seed compare; those of another source are others."""

    def held_out(name: str, seed: int) -> list[int]:
        order = SourceOrder(name, seed, 52, 8, 120, {0: 0})
        return [row for row in range(52) if order.place(row) < 8]

    assert held_out("a", 3) == held_out("a", 4) != held_out("b", 3)


def passes_of(source: SourceOrder) -> list[int]:
    """Rows of a source by turn."""
    turns = {turn: row for row in range(52) if (place := source.place(row)) >= 2 for turn in source.turns(place)}
    assert sorted(turns) == list(range(source.used))
    return [turns[turn] for turn in range(source.used)]


def test_ten_billion_rows_take_no_memory():
    """Sources of 10 B rows, one repeated: some rows' positions, and the order itself, in less than a megabyte."""
    sizes = {"a": 6_000_000_000, "b": 3_999_999_999, "c": 1}
    sources = tuple(SourceConfig(name=name, path="-", **TEXT) for name in sizes)
    corpus = CorpusConfig(sources=sources, validation_rows=0)
    tracemalloc.start()
    order = draw_order(corpus, sources, {name: {number: size} for number, (name, size) in enumerate(sizes.items())})
    places = [order.places("a", row) for row in range(0, 1 << 32, 60_000_001)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert order.rows == 10_000_000_000 and peak < 1 << 20
    assert all(len(of_row) == 1 for of_row in places) and len({place for [place] in places}) == len(places)
    assert order.places("b", 1 << 32 | 7) == order.places("b", 1 << 32 | 7) != order.places("b", 1 << 32 | 8)
