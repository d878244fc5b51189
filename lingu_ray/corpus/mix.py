"""Mixing: which source, and which of its rows, is at each position of the global order.

Sources take turns by Tijdeman's rule (R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32, 1980):
in every prefix of the order each source's count differs from weight × length by less than one row.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


def interleave(weights: list[float], length: int) -> IntArray:
    """Interleave sources by weight: source index at each position, int64 of shape [length].

    At position n (from 1) a source with c rows so far may be next if n·w − c ≥ 1/(2k − 2), with w its share and k the
    number of sources; of these the one is taken whose next row is due first, at (c + 1 − 1/(2k − 2)) / w.
    """
    total = math.fsum(weights)
    shares = [weight / total for weight in weights]
    slack = 1 / max(2 * len(weights) - 2, 1)
    counts = [0] * len(weights)
    due = [(1 - slack) / share for share in shares]
    order = np.empty(length, dtype=np.int64)
    sources = range(len(weights))
    for n in range(1, length + 1):
        # The tolerance keeps a source that is due exactly now from missing its turn by a rounding error.
        allowed = [i for i in sources if n * shares[i] - counts[i] >= slack - 1e-9]
        taken = min(allowed, key=due.__getitem__)
        order[n - 1] = taken
        counts[taken] += 1
        due[taken] = (counts[taken] + 1 - slack) / shares[taken]
    return order


def order_of_sources(sizes: list[int], weights: list[float] | None, rows: int | None) -> IntArray:
    """Source index at each position of a corpus, for sources with `sizes` rows.

    Without weights, shares are proportional to the sizes. Without `rows`, the order ends as soon as every source was
    used once: without weights each row comes exactly once; with weights smaller sources repeat.
    """
    shares = weights or [float(size) for size in sizes]
    if rows is not None:
        return interleave(shares, rows)
    if weights is None:
        return interleave(shares, sum(sizes))
    total = math.fsum(shares)
    enough = max(math.ceil((size + 1) * total / share) for size, share in zip(sizes, shares, strict=True))
    order = interleave(shares, enough)
    seen = [np.flatnonzero(order == i)[size - 1] for i, size in enumerate(sizes)]
    return order[: max(seen) + 1]


def shuffled(size: int, seed: int, name: str, use: str | int) -> IntArray:
    """A permutation of range(size) that depends on seed, source name and what it is used for (a pass, 'validation')."""
    digest = hashlib.blake2b(f"{seed}/{name}/{use}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "big")).permutation(size)


def picks(size: int, count: int, seed: int, name: str) -> IntArray:
    """Which of a source's `size` rows fill its `count` positions, int64 [count]: each once per pass, reshuffled."""
    passes = [shuffled(size, seed, name, number) for number in range(math.ceil(count / size))]
    return np.concatenate([*passes, np.empty(0, dtype=np.int64)])[:count]
