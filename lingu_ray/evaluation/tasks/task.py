"""A task: its settings and its items, each with its question and the reference for its answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

from lingu_ray.config import TaskConfig
from lingu_ray.content import fingerprint
from lingu_ray.evaluation.engines.engine import GenerateRequest, ScoreRequest

Reference = dict[str, Any]
"""What a metric compares an answer with, as columns of the item's parquet row: `gold`, `answers`, …"""


@dataclass(frozen=True)
class Scored:
    """An item whose texts are scored.

    `name`: where it is in the data (a line, a row). `quotable`: question and right answer as one text, once for each
    right answer, without what other items have, too, such as examples before it; no answer depends on it.
    """

    name: str
    requests: tuple[ScoreRequest, ...]
    reference: Reference
    quotable: tuple[str, ...]


class ItemImage(Protocol):
    """An image of an item: calling it reads its encoded bytes. `content`: their identity; `pixels`: that of pixels."""

    @property
    def content(self) -> str: ...

    @property
    def pixels(self) -> str: ...

    def __call__(self) -> bytes: ...


@dataclass(frozen=True)
class Asked:
    """An item that is answered; its images are read when they are needed. `quotable`: as of `Scored`."""

    name: str
    prompt: str
    images: tuple[ItemImage, ...]
    reference: Reference
    quotable: tuple[str, ...]

    def request(self, config: TaskConfig) -> GenerateRequest:
        """What the engine is asked."""
        images = tuple(read() for read in self.images)
        return GenerateRequest(self.prompt, images, config.max_new_tokens, tuple(config.stop))

    def described(self, config: TaskConfig) -> tuple[GenerateRequest, tuple[str, ...]]:
        """All that the answer depends on besides the model: the request, its images by their identities."""
        return replace(self, images=()).request(config), tuple(image.content for image in self.images)


Item = Scored | Asked


def images_of(item: Item) -> tuple[ItemImage, ...]:
    """An item's images, if it has some."""
    return item.images if isinstance(item, Asked) else ()


@dataclass(frozen=True)
class Task:
    """A task's settings and its items (never none)."""

    config: TaskConfig
    items: tuple[Item, ...]

    @property
    def asked(self) -> str:
        """Fingerprint of all that is asked, and of what the answers are compared with.

        How they are compared is no part of it, nor where the data lies: answers are found again when that changes.
        """
        return fingerprint(
            [
                (item.name, item.reference, item.requests if isinstance(item, Scored) else item.described(self.config))
                for item in self.items
            ]
        )
