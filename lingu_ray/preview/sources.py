"""What was read of the sources: counts, lengths, rejects, examples, and their shares of the mixture."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from lingu_ray.config import Config, SourceConfig
from lingu_ray.config.numbers import share_of
from lingu_ray.preview.roles import Judge
from lingu_ray.preview.tokens import Segment


@dataclass(frozen=True)
class Length:
    """Of an accepted row: tokens of the whole row, of its sample, supervised ones in it; images; whether it is cut."""

    whole: int
    tokens: int
    supervised: int
    images: int
    truncated: bool


@dataclass(frozen=True)
class Reject:
    """A record that makes no row: why, where it stands, and what is wrong in it."""

    reason: str
    origin: str
    detail: str


@dataclass(frozen=True)
class Example:
    """A row as it is trained; `images` are encoded. Where it is truncated the last segment is what is left out."""

    origin: str
    length: Length
    images: list[bytes]
    segments: list[Segment]


@dataclass(frozen=True)
class SourcePreview:
    """What was read of a source.

    `complete`: all of it. `size`: rows and rejects that it has; about, if not all were read. `wanted`: rejects to show
    in place of examples.
    """

    judge: Judge
    complete: bool
    size: float
    lengths: list[Length]
    rejects: list[Reject]
    examples: list[Example]
    wanted: list[Reject]

    @property
    def settings(self) -> SourceConfig:
        """The source's settings."""
        return self.judge.source

    @property
    def read(self) -> int:
        """Rows read, rejects included."""
        return len(self.lengths) + len(self.rejects)

    @property
    def training_rows(self) -> float:
        """Accepted rows that are not held out; about, if not all were read."""
        return self.size * len(self.lengths) / max(self.read, 1) - self.judge.config.corpus.validation_rows

    @property
    def truncated(self) -> int:
        """Rows that are longer than `max_length`."""
        return sum(length.truncated for length in self.lengths)

    @cached_property
    def rejected(self) -> dict[str, list[Reject]]:
        """Rejects by reason, the most frequent reason first."""
        counts = Counter(reject.reason for reject in self.rejects)
        return {reason: [r for r in self.rejects if r.reason == reason] for reason, _ in counts.most_common()}

    @property
    def rejects_too_many(self) -> bool:
        """Whether more of the rows are rejected than `corpus.max_reject_rate` allows."""
        return len(self.rejects) > share_of(self.judge.config.corpus.max_reject_rate, self.read)

    @property
    def stops_the_build(self) -> bool:
        """Whether that is so, or all rows were read and none is left to train on."""
        return self.rejects_too_many or (self.judge.trained and self.complete and self.training_rows <= 0)


@dataclass(frozen=True)
class Share:
    """A source's part of the mixture; `exact`: not estimated from a part of the rows."""

    part: float
    exact: bool


def shares(previews: list[SourcePreview], config: Config) -> dict[str, Share | None]:
    """Each source's share of the mixture; None where that depends on sources which were not read.

    Without weights sources share by their training rows.
    """
    training = config.training_sources()
    sizes: dict[str, float] = {source.name: source.weight for source in training if source.weight is not None}
    exact = bool(sizes)
    if not exact:
        sizes = {p.settings.name: p.training_rows for p in previews if p.settings in training and p.training_rows > 0}
        exact = all(preview.complete for preview in previews)
    names = [preview.settings.name for preview in previews]
    if len(sizes) < len(training):
        return dict.fromkeys(names)
    total = sum(sizes.values())
    return {name: Share(sizes.get(name, 0.0) / total, exact) for name in names}
