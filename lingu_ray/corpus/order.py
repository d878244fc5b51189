"""The global order: the positions of each good row in the corpus, computed from the row's key alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lingu_ray.config import CorpusConfig, SourceConfig
from lingu_ray.corpus.mix import Permutation, Turns, turns_of
from lingu_ray.errors import UserError

VALIDATION = -1  # as a shard: held out
ROWS_PER_TABLE = 64  # with places
MOSTLY_REPEATS = 10  # rows of the order per distinct row above which the build warns

Place = tuple[int, int]
"""Shard and position. Held-out rows are in shard `VALIDATION`, at their position in their source's validation set."""


@dataclass(frozen=True)
class SourceOrder:
    """The turns of one source's rows, which are numbered from 0 in the order of its files.

    Attributes:
        name: of the source; a key of the permutations that draw held-out rows and the order of the others.
        seed: a further key of the order.
        rows: number of good rows.
        held_out: how many of them are held out.
        used: number of the source's turns.
        starts: the number of the first row, by file split.
    """

    name: str
    seed: int
    rows: int
    held_out: int
    used: int
    starts: Mapping[int, int]

    def place(self, key: int) -> int:
        """The drawn place of a row among all rows of its source; the first `held_out` places are held out."""
        return self._drawn(self.starts[key >> 32] + (key & 0xFFFFFFFF))

    def turns(self, place: int) -> Iterator[int]:
        """The turns of a row at a place that is not held out: one in each pass, and each pass has a new order."""
        size = self.rows - self.held_out
        for number in range(-(-self.used // size)):
            turn = number * size + self._pass(number)(place - self.held_out)
            if turn < self.used:
                yield turn

    @cached_property
    def _drawn(self) -> Permutation:
        return Permutation(self.rows, f"0/{self.name}/validation")  # under any seed, so that validations compare

    def _pass(self, number: int) -> Permutation:
        return Permutation(self.rows - self.held_out, f"{self.seed}/{self.name}/{number}")


@dataclass(frozen=True)
class GlobalOrder:
    """The positions of all rows. It holds a number for each file split, and nothing for each row.

    `rows`: length of the order, which is written in shards of `rows_per_shard`.
    """

    sources: Mapping[str, SourceOrder]
    turns: Turns
    rows: int
    rows_per_shard: int

    @property
    def written(self) -> int:
        """Rows of all shards and of the validation set."""
        return self.rows + sum(source.held_out for source in self.sources.values())

    def used(self, name: str) -> dict[str, int | float]:
        """Counts of a source for the manifest."""
        source = self.sources[name]
        passes = round(source.used / (source.rows - source.held_out), 4)
        return {"used": source.used, "passes": passes, "validation": source.held_out}

    def places(self, name: str, key: int) -> list[Place]:
        """Where a source's row is written: at one place, at several, or at none if the order ends before its turn."""
        source, index = self.sources[name], list(self.sources).index(name)
        place = source.place(key)
        if place < source.held_out:
            return [(VALIDATION, place)]
        positions = (self.turns.position(index, turn) for turn in source.turns(place))
        return [(position // self.rows_per_shard, position) for position in positions]

    def assign(self, block: pa.Table) -> Iterator[pa.Table]:
        """The block's rows with `shard` and `position`, in small tables; at least one table.

        A row comes once for each of its places, so a small source may take many times the block's memory.
        """
        good = block.filter(pc.field("reason").is_null())
        named = zip(good["source"].to_pylist(), good["key"].to_pylist(), strict=True)
        placed = [(row, *place) for row, (name, key) in enumerate(named) for place in self.places(name, key)]
        for first in range(0, max(1, len(placed)), ROWS_PER_TABLE):
            part = placed[first : first + ROWS_PER_TABLE]
            rows, shards, positions = (pa.array([one[i] for one in part], pa.int64()) for i in range(3))
            assigned = good.select(["source", "messages", "images", "distill"]).take(rows)
            yield assigned.append_column("shard", shards).append_column("position", positions)


def none_left(source: str, rows: int, held_out: int) -> str:
    """The message that all good rows of a source are held out."""
    return (
        f"source {source} has {rows} good rows, and corpus.validation_rows={held_out} are held out of each source: no "
        "row is left to train on. Lower corpus.validation_rows or give more rows"
    )


def draw_order(
    corpus: CorpusConfig, sources: tuple[SourceConfig, ...], good_rows: Mapping[str, Mapping[int, int]]
) -> GlobalOrder:
    """The order, from the numbers of good rows by source and file split.

    Raises:
        UserError: a source has no row left for training.
    """
    sizes = {source.name: sum(good_rows[source.name].values()) for source in sources}
    held_out = corpus.validation_rows
    for name, size in sizes.items():
        if size <= held_out:
            raise UserError(none_left(name, size, held_out))
    weights = [source.weight for source in sources if source.weight is not None]
    turns, length = turns_of([size - held_out for size in sizes.values()], weights or None, corpus.rows)
    orders = {
        name: SourceOrder(name, corpus.seed, size, held_out, turns.count(index, length), _starts(good_rows[name]))
        for index, (name, size) in enumerate(sizes.items())
    }
    return GlobalOrder(orders, turns, length, corpus.rows_per_shard)


def doubts(corpus: CorpusConfig, order: GlobalOrder) -> Iterator[str]:
    """Warnings where weights make an order that is hardly meant: mostly repeats, or without any row of a source."""
    sizes = {name: source.rows - source.held_out for name, source in order.sources.items()}
    if corpus.rows is None and order.rows > MOSTLY_REPEATS * sum(sizes.values()):
        last = min(sizes, key=lambda name: order.sources[name].used / sizes[name])
        yield (
            f"{order.rows} rows will be written, and there are {sum(sizes.values())} to train on: the others repeat "
            f"until {last} was used once. Set corpus.rows to what training reads, train.steps × train.rows_per_step, "
            "or raise that source's weight"
        )
    if missing := [name for name, source in order.sources.items() if not source.used]:
        yield (
            f"of {', '.join(missing)} no row is trained on: by its weight the first one would come after "
            f"{order.rows} rows. Raise corpus.rows or the weight, or leave the source out"
        )


def passes(manifest: dict[str, Any], positions: int) -> dict[str, float]:
    """Passes over each source's training rows, by name, when `positions` positions of the corpus order are read.

    The order repeats, so whole rounds count exactly. Within a round a source's rows count in proportion to the
    positions read: the order keeps every source within two rows of its share (`corpus.mix`), so the result is less than
    four rows off.
    """
    rounds = positions / manifest["rows"]
    return {
        name: rounds * counts["used"] / (counts["accepted"] - counts["validation"])
        for name, counts in manifest["sources"].items()
    }


def _starts(good_rows: Mapping[int, int]) -> dict[int, int]:
    """The number of rows before each file split."""
    splits = sorted(good_rows)
    return dict(zip(splits, accumulate((good_rows[split] for split in splits), initial=0), strict=False))
