"""What an evaluation asks of a model: log-likelihoods of text, and greedy answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol


@dataclass(frozen=True)
class ScoreRequest:
    """Ask how likely `continuation` is after `context`. Raw text without a chat template; the context may be empty."""

    context: str
    continuation: str


@dataclass(frozen=True)
class Score:
    """Natural-log likelihood of a continuation, summed over tokens; their number; whether greedy decoding gives it.

    `cut_to`: the model's context in tokens, where the request did not fit and was cut to it; else 0.
    """

    loglik: float
    tokens: int
    greedy: bool
    cut_to: int = 0


@dataclass(frozen=True)
class GenerateRequest:
    """Ask for a greedy answer, up to the end of the turn, `max_new_tokens`, or the first of the texts `stop`.

    `<image>` in the prompt marks where `images` (encoded bytes) stand; without it they come first. With `chat` the
    prompt goes through the model's chat template; else it is raw text, without images.
    """

    prompt: str
    images: tuple[bytes, ...] = ()
    max_new_tokens: int = 16
    stop: tuple[str, ...] = ()
    chat: bool = True


class Answer(NamedTuple):
    """A generated text; `cut_off`: it ended at `max_new_tokens`, and neither by itself nor by a stop text."""

    text: str
    cut_off: bool


class Engine(Protocol):
    """A loaded model. Answers come in the order of the requests."""

    def loglikelihoods(self, requests: list[ScoreRequest]) -> list[Score]:
        """Score every request.

        Raises:
            UserError: a continuation has no token of its own, or a likelihood is not finite.
        """
        ...

    def generate(self, requests: list[GenerateRequest]) -> list[Answer]:
        """Answer every request greedily; without the stop text and, in a chat, surrounding spaces.

        Raises:
            UserError: the model takes no images, or a prompt does not fit its context.
        """
        ...
