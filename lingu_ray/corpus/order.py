"""The global order: the position of every good row in the corpus, drawn on the driver over the rows' keys."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from lingu_ray.config import CorpusConfig, SourceConfig
from lingu_ray.corpus.mix import IntArray, order_of_sources, picks, shuffled
from lingu_ray.errors import UserError

VALIDATION = -1  # as a shard: held out


@dataclass(frozen=True)
class GlobalOrder:
    """Shard and position of every row, sorted by key: a repeated row has several entries, an unused one none.

    `keys`, `shards`, `positions`: int64 of the same length. Held-out rows are in shard `VALIDATION`, at their position
    in their source's validation set.
    """

    keys: IntArray
    shards: IntArray
    positions: IntArray
    used: dict[str, dict[str, int | float]]  # by source: counts for the manifest
    rows: int  # length of the order

    def assign(self, block: pa.Table) -> pa.Table:
        """The block's used rows with their `shard` and `position`; a row with several entries comes several times."""
        keys = block["key"].to_numpy()
        first = np.searchsorted(self.keys, keys, side="left")
        count = np.searchsorted(self.keys, keys, side="right") - first
        rows = np.repeat(np.arange(len(keys)), count)
        nth = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
        entries = np.repeat(first, count) + nth
        assigned = block.select(["source", "messages", "images", "distill"]).take(pa.array(rows))
        assigned = assigned.append_column("shard", pa.array(self.shards[entries]))
        return assigned.append_column("position", pa.array(self.positions[entries]))


def draw_order(corpus: CorpusConfig, sources: tuple[SourceConfig, ...], keys: dict[str, IntArray]) -> GlobalOrder:
    """Draws the held-out rows and the global order from each source's sorted keys.

    Raises:
        UserError: a source has no row left for training.
    """
    training: list[IntArray] = []
    blocks: list[tuple[IntArray, IntArray, IntArray]] = []
    for source in sources:
        of_source = keys[source.name]
        if len(of_source) <= corpus.validation_rows:
            raise UserError(
                f"source {source.name} has {len(of_source)} good rows, and corpus.validation_rows="
                f"{corpus.validation_rows} are held out of each source: no row is left to train on. "
                "Lower corpus.validation_rows or give more rows"
            )
        held = shuffled(len(of_source), corpus.seed, source.name, "validation")[: corpus.validation_rows]
        blocks.append((of_source[held], np.full(len(held), VALIDATION), np.arange(len(held))))
        training.append(np.delete(of_source, held))

    weights = [source.weight for source in sources if source.weight is not None]
    order = order_of_sources([len(k) for k in training], weights or None, corpus.rows)
    used: dict[str, dict[str, int | float]] = {}
    for index, (source, of_source) in enumerate(zip(sources, training, strict=True)):
        positions = np.flatnonzero(order == index)
        chosen = picks(len(of_source), len(positions), corpus.seed, source.name)
        blocks.append((of_source[chosen], positions // corpus.rows_per_shard, positions))
        passes = round(len(positions) / len(of_source), 4)
        used[source.name] = {"used": len(positions), "passes": passes, "validation": corpus.validation_rows}
    all_keys, shards, positions = (np.concatenate(part) for part in zip(*blocks, strict=True))
    by_key = np.lexsort((positions, all_keys))
    return GlobalOrder(all_keys[by_key], shards[by_key], positions[by_key], used, len(order))
