"""Passes over the sources, against counts of the order itself."""

from __future__ import annotations

import numpy as np
import pytest

from lingu_ray.config import CorpusConfig, SourceConfig
from lingu_ray.corpus.mix import turns_of
from lingu_ray.corpus.order import draw_order, passes


def manifest_of(sizes: dict[str, int], weights: list[float] | None = None, held_out: int = 2, rows: int | None = None):
    """The manifest's part that counts, made by what makes it in a build."""
    sources = tuple(
        SourceConfig(name=name, format="text", path="-", weight=weights[index] if weights else None)
        for index, name in enumerate(sizes)
    )
    corpus = CorpusConfig(sources=sources, validation_rows=held_out, rows=rows)
    order = draw_order(corpus, sources, {name: {number: size} for number, (name, size) in enumerate(sizes.items())})
    return {
        "rows": order.rows,
        "sources": {name: {"accepted": size} | order.used(name) for name, size in sizes.items()},
    }


def test_an_order_that_wraps_counts_every_round():
    """300 steps of 8 rows over 268 rows are 8.96 passes, not one."""
    assert passes(manifest_of({"all": 270}), 300 * 8) == {"all": pytest.approx(2400 / 268)}


def test_whole_rounds_are_exact():
    """After one round, and after three, a source was seen as often as it stands in the order."""
    manifest = manifest_of({"few": 12, "many": 52}, weights=[0.5, 0.5])
    assert manifest["rows"] > 60 and passes(manifest, manifest["rows"])["few"] > 4
    for rounds in (1, 3):
        found = passes(manifest, rounds * manifest["rows"])
        for name, held in (("few", 10), ("many", 50)):
            assert found[name] == pytest.approx(rounds * manifest["sources"][name]["used"] / held)


@pytest.mark.parametrize(("weights", "rows"), [(None, 1), ([0.7, 0.2, 0.1], 2)])
def test_within_a_round_it_is_hardly_off(weights: list[float] | None, rows: int):
    """At every place, wrapped or not, it differs from what is counted in the order by less than a row, or two.

    Two where shares are set: the order ends within a row of them, and not always on them.
    """
    sizes = {"a": 12, "b": 32, "c": 7}
    manifest = manifest_of(sizes, weights)
    turns, length = turns_of([size - 2 for size in sizes.values()], weights, None)
    order = np.zeros(length, int)
    for source in range(3):
        order[[turns.position(source, turn) for turn in range(turns.count(source, length))]] = source
    order = np.tile(order, 2)
    for positions in range(1, len(order)):
        counted = np.bincount(order[:positions], minlength=3)
        for index, (name, value) in enumerate(passes(manifest, positions).items()):
            assert abs(value * (sizes[name] - 2) - counted[index]) < rows


def test_fewer_rows_than_the_data():
    """A run that ends within the first round, of an order shorter than the data, has made part of a pass."""
    assert passes(manifest_of({"all": 102}, rows=50), 25) == {"all": pytest.approx(0.25)}
