"""Mixing: the source and the row at each position of the global order, computed for one position at a time.

Sources take turns by halving (`Turns`), and a source's rows come in the order of a keyed permutation (`Permutation`).
Both are functions of a row's number, so an order of any length takes no memory.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from hashlib import blake2b

SHARES = 1 << 40  # weights become whole numbers with this sum
ROUNDS = 6  # of the Feistel network; even
LEAST_BITS = 6  # with fewer, some of the permutations come too often


@dataclass(frozen=True)
class _Half:
    """A group of sources in a larger group: its weight, that of the larger one, and whether it is the first half."""

    weight: int
    whole: int
    first: bool


class Turns:
    """The positions at which sources take turns, by their weights.

    Groups of sources are halves of larger groups, as in a Huffman tree: the two lightest groups are joined until one is
    left. Of the first N turns of a group its first half gets N · weight / whole, rounded. Each rounding is off by at
    most 1/2, and passes at most 2/3 of that on to a group inside. So in every prefix of the order each source's count
    differs from weight × length by less than two rows, or less than one row for up to three sources.
    """

    def __init__(self, weights: list[int]) -> None:
        self._halves: list[list[_Half]] = [[] for _ in weights]  # of each source, from its own to the largest
        groups = [(weight, [source]) for source, weight in enumerate(weights)]
        heapq.heapify(groups)
        while len(groups) > 1:
            pair = heapq.heappop(groups), heapq.heappop(groups)
            whole = pair[0][0] + pair[1][0]
            for weight, sources in pair:
                for source in sources:
                    self._halves[source].append(_Half(weight, whole, first=sources is pair[0][1]))
            heapq.heappush(groups, (whole, pair[0][1] + pair[1][1]))

    def position(self, source: int, turn: int) -> int:
        """Position of a source's turn; both count from 0."""
        for half in self._halves[source]:
            turn = (half.whole * (2 * turn + 1) - half.first) // (2 * half.weight)
        return turn

    def count(self, source: int, length: int) -> int:
        """Turns of a source before position `length`."""
        for half in reversed(self._halves[source]):
            of_first = half.weight if half.first else half.whole - half.weight
            first = (2 * of_first * length + half.whole) // (2 * half.whole)
            length = first if half.first else length - first
        return length


def turns_of(sizes: list[int], weights: list[float] | None, rows: int | None) -> tuple[Turns, int]:
    """The turns of sources with `sizes` rows, and the length of their order.

    Without weights, sources are weighted by their sizes. Without `rows`, the order ends as soon as every source was
    used once: without weights each row comes exactly once, with weights smaller sources repeat.
    """
    if weights is None:
        turns = Turns(sizes)
    else:
        total = math.fsum(weights)
        turns = Turns([max(1, round(weight / total * SHARES)) for weight in weights])
    used_once = max(turns.position(source, size - 1) for source, size in enumerate(sizes)) + 1
    return turns, used_once if rows is None else rows


class Permutation:
    """A permutation of range(`size`) that depends on `key`, and is computed for one number at a time.

    A Feistel network permutes the numbers of as many bits as `size` needs; a result beyond `size` is permuted again
    (cycle walking, less than twice on average except for tiny sizes).
    """

    def __init__(self, size: int, key: str) -> None:
        self._size = size
        bits = max(LEAST_BITS, (size - 1).bit_length())
        self._bits = bits - bits // 2, bits // 2  # of the upper and the lower part
        self._key = blake2b(key.encode(), digest_size=32).digest()

    def __call__(self, number: int) -> int:
        """Where a number (0 ≤ number < size) comes."""
        while (number := self._permuted(number)) >= self._size:
            pass
        return number

    def _permuted(self, number: int) -> int:
        left_bits, right_bits = self._bits
        left, right = number >> right_bits, number & ((1 << right_bits) - 1)
        for turn in range(ROUNDS):
            left, right = right, left ^ (self._hash(turn, right) & ((1 << left_bits) - 1))
            left_bits, right_bits = right_bits, left_bits
        return left << right_bits | right

    def _hash(self, turn: int, part: int) -> int:
        digest = blake2b(b"%s%d/%d" % (self._key, turn, part), digest_size=8).digest()
        return int.from_bytes(digest, "big")
