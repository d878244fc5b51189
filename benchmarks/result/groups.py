"""Groups of nearly equal things, and splits to which whole groups are assigned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lingu_ray.content import fingerprint

Split = Literal["train", "validation", "evaluation"]
TRAIN, VALIDATION, EVALUATION = SPLITS = ("train", "validation", "evaluation")


class Groups:
    """Things, by number, that are joined in pairs into groups (union-find)."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def of(self, one: int) -> int:
        """A thing's group, as the smallest number in it."""
        while self._parent[one] != one:
            self._parent[one] = one = self._parent[self._parent[one]]
        return one

    def join(self, one: int, other: int) -> None:
        """Join the groups of two things."""
        least, most = sorted((self.of(one), self.of(other)))
        self._parent[most] = least


@dataclass(frozen=True)
class Shares:
    """Shares of the groups that are held out, besides those that a data set holds out itself."""

    validation: float
    evaluation: float

    def draw(self, key: str, seed: int) -> Split:
        """The split of a group. It depends on its key alone, not on other groups."""
        place = chance(key, seed)
        if place < self.evaluation:
            return EVALUATION
        return VALIDATION if place < self.evaluation + self.validation else TRAIN


def chance(key: str, seed: int) -> float:
    """A number from 0 to 1 for a key, the same on every machine."""
    return int(fingerprint([seed, key], 12), 16) / 16**12


@dataclass(frozen=True)
class Assigned:
    """Things by split; `dropped`: how many were left out, by reason."""

    members: Mapping[Split, list[int]]
    dropped: Counter[str]


def assign(keys: list[str], groups: Groups, held_out: set[int], shares: Shares, seed: int) -> Assigned:
    """Split things by their groups.

    Args:
        keys: the identity of each thing's content; of equal things the first is kept.
        groups: groups of nearly equal things.
        held_out: things that the data set itself holds out; other things in their groups are left out.
        shares: held-out shares of the other groups.
        seed: seed of the draw.
    """
    owned = {groups.of(one) for one in held_out}
    members: dict[Split, list[int]] = {TRAIN: [], VALIDATION: [], EVALUATION: []}
    dropped, seen = Counter[str](), set[str]()
    for one in sorted(range(len(keys)), key=lambda one: (one not in held_out, one)):
        group = groups.of(one)
        if keys[one] in seen:
            dropped["repeated"] += 1
        elif group in owned and one not in held_out:
            dropped["like a held-out one"] += 1
        else:
            members[EVALUATION if group in owned else shares.draw(keys[group], seed)].append(one)
        seen.add(keys[one])
    return Assigned(members, dropped)
