"""The global order: the same for every cut of the files into file splits, and of the rows into blocks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from lingu_ray.config import CorpusConfig, SourceConfig
from lingu_ray.corpus.mix import IntArray
from lingu_ray.corpus.order import VALIDATION, GlobalOrder, draw_order

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


def keys_of(cuts: Cuts) -> dict[str, IntArray]:
    """The rows' keys as a build makes them: number of the file split over all sources, index in it."""
    keys, split = {}, 0
    for name, sizes in zip(NAMES, cuts, strict=False):
        of_source = []
        for size in sizes:
            of_source += [split << 32 | index for index in range(size)]
            split += 1
        keys[name] = np.array(of_source)
    return keys


def order_of(cuts: Cuts, weights: list[float], rows: int | None) -> GlobalOrder:
    """The order of sources with these weights (none: by size)."""
    sources = tuple(
        SourceConfig(name=name, path="-", weight=weights[index] if weights else None, **TEXT)
        for index, name in enumerate(keys_of(cuts))
    )
    return draw_order(CorpusConfig(sources=sources, validation_rows=HELD_OUT, rows=rows), sources, keys_of(cuts))


def entries(order: GlobalOrder, cuts: Cuts) -> list[tuple[int, int, int]]:
    """Number of the row over all sources (which no cut changes), shard and position, sorted."""
    numbers = {key: number for number, key in enumerate(np.concatenate(list(keys_of(cuts).values())).tolist())}
    columns = (order.keys.tolist(), order.shards.tolist(), order.positions.tolist())
    return sorted((numbers[key], shard, position) for key, shard, position in zip(*columns, strict=True))


DRAWN = (
    drawn_cuts(),
    st.lists(st.floats(0.1, 10), min_size=3, max_size=3) | st.just([]),
    st.none() | st.integers(1, 90),
)


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


@given(*DRAWN, st.sets(st.integers(1, 89), max_size=6))
def test_rows_are_assigned_alike_in_any_blocks(
    two: tuple[Cuts, Cuts], weights: list[float], rows: int | None, bars: set[int]
):
    """The rows of a build in one block or in several: together the same rows at the same positions."""
    order, keys = order_of(two[0], weights, rows), keys_of(two[0])
    table = pa.table(
        {
            "key": np.concatenate(list(keys.values())),
            "source": [name for name, of_source in keys.items() for _ in of_source],
            **{column: [None] * sum(map(len, keys.values())) for column in ("messages", "images", "distill")},
        }
    )
    edges = [0, *sorted(bar for bar in bars if bar < len(table)), len(table)]
    blocks = [table.slice(start, stop - start) for start, stop in pairwise(edges)]
    assert pa.concat_tables(map(order.assign, blocks)).equals(order.assign(table))
    assert len(order.assign(table)) == len(order.keys)
