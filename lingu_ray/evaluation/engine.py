"""What an evaluation asks of a model: log-likelihoods of text, and greedy answers about images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class ScoreRequest:
    """How likely is `continuation` after `context`? Raw text, no chat template; an empty context starts the text."""

    context: str
    continuation: str


@dataclass(frozen=True)
class Score:
    """Natural-log likelihood of a continuation, summed over its tokens, and how many those are."""

    loglik: float
    tokens: int


@dataclass(frozen=True)
class GenerateRequest:
    """A question about images, for the model's chat template. `<image>` marks their places; else they come first."""

    question: str
    images: tuple[Path, ...]


class Engine(Protocol):
    """A loaded model. Answers come in the order of the requests; `label` names the work in the progress bar."""

    @property
    def sees(self) -> bool:
        """Whether the model takes images."""
        ...

    def loglikelihoods(self, requests: list[ScoreRequest], label: str) -> list[Score]:
        """Score every request."""
        ...

    def generate(self, requests: list[GenerateRequest], max_new_tokens: int, label: str) -> list[str]:
        """Answer every request greedily."""
        ...
