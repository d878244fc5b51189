"""A task: its settings and its items, each with its question and the reference for its answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lingu_ray.config import TaskConfig
from lingu_ray.evaluation.engines.engine import GenerateRequest, ScoreRequest

Reference = dict[str, Any]
"""What a metric compares an answer with, as columns of the item's parquet row: `gold`, `answers`, …"""


@dataclass(frozen=True)
class Scored:
    """An item whose texts are scored; `name` says where it is in the data (a line, a row)."""

    name: str
    requests: tuple[ScoreRequest, ...]
    reference: Reference


@dataclass(frozen=True)
class Asked:
    """An item that is answered; its images are read, as encoded bytes, when they are needed."""

    name: str
    prompt: str
    images: tuple[Callable[[], bytes], ...]
    reference: Reference

    def request(self, config: TaskConfig) -> GenerateRequest:
        """What the engine is asked."""
        images = tuple(read() for read in self.images)
        return GenerateRequest(self.prompt, images, config.max_new_tokens, tuple(config.stop))


Item = Scored | Asked


@dataclass(frozen=True)
class Task:
    """A task's settings and its items (never none)."""

    config: TaskConfig
    items: tuple[Item, ...]
