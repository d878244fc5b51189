"""The row of a corpus: one conversation with its encoded images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PLACEHOLDER = "<image>"  # marks an image in a message, whatever the student's own image token is

Message = dict[str, Any]  # texts under `role` and `content`; `supervised`: False if an answer is no target of the loss
Messages = list[Message]


@dataclass(frozen=True)
class Row:
    """One conversation.

    `messages` alternate between user and assistant after an optional system message; each is
    `{"role": "system" | "user" | "assistant", "content": text}`, and `"supervised": False` in an answer that is no
    target of the loss; the last answer always is one. The k-th `PLACEHOLDER` of the conversation stands for
    `images[k]` (encoded bytes: PNG, JPEG, …, never pixels). `position` is the row's position in the global order, or in
    its source's validation set. `distill` is the source's `language_heavy` flag; the policy is applied by the worker.
    """

    source: str
    position: int
    messages: Messages
    images: list[bytes]
    distill: bool

    def __str__(self) -> str:
        return f"row {self.position} (source {self.source})"


def is_target(message: Message) -> bool:
    """Whether a message is an answer that is a target of the loss."""
    return message["role"] == "assistant" and message.get("supervised", True)


def answer_ends(messages: Messages) -> list[int]:
    """For each answer, how many messages there are up to it."""
    return [end for end, message in enumerate(messages, start=1) if message["role"] == "assistant"]


def placeholders(messages: Messages) -> int:
    """How many images the messages have a place for."""
    return sum(message["content"].count(PLACEHOLDER) for message in messages)
