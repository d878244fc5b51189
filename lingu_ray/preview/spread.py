"""Items spread evenly over a stream whose length is not known: of a source's file splits, records and rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from lingu_ray.corpus.splits import FileSplit

T = TypeVar("T")
Numbered = tuple[int, Any]
"""A record and its number in the file, as file splits yield them."""


class Spread(Generic[T]):
    """Keeps at most `count` items of those that are added, spread evenly, the first and about the last among them.

    Never holds more than twice as many. Equal streams give equal items.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.seen = 0
        self._every = 1
        self._kept: list[T] = []

    def add(self, item: T) -> None:
        """Look at the next item of the stream."""
        if self.seen % self._every == 0:
            self._kept.append(item)
            if len(self._kept) > 2 * self.count:
                self._kept = self._kept[::2]
                self._every *= 2
        self.seen += 1

    def items(self) -> list[T]:
        """Those kept, in order."""
        last = len(self._kept) - 1
        if last < self.count:
            return self._kept
        return [self._kept[i * last // max(self.count - 1, 1)] for i in range(self.count)]

    @property
    def complete(self) -> bool:
        """Whether every item is kept."""
        return self.seen <= self.count


@dataclass(frozen=True, kw_only=True)
class SpreadSplit(FileSplit):
    """A file split of which some records are read, spread evenly over it, once; `begin` is told the index of each."""

    spread: Spread[Numbered]
    begin: Callable[[int], None]

    def records(self) -> Iterator[Numbered]:
        """The records kept, with their numbers."""
        for record in super().records():
            self.spread.add(record)
        for index, record in enumerate(self.spread.items()):
            self.begin(index)
            yield record


@dataclass(frozen=True, kw_only=True)
class MatchingSplit(FileSplit):
    """A file split of which the records are read whose origin is `end`, or ends with it after a `/` or `:`."""

    end: str

    def records(self) -> Iterator[Numbered]:
        """The records wanted, with their numbers."""
        return (record for record in super().records() if self._is_wanted(self.origin(record[0])))

    def _is_wanted(self, origin: str) -> bool:
        return origin == self.end or origin.endswith((f"/{self.end}", f":{self.end}"))
