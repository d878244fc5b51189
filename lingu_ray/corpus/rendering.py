"""Conversations as text: whole ones, cut into answers and the text between them, and prompts for inference."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from typing import Any

from lingu_ray.corpus.answers import Answer, Segment, check_prompts, closed, find_answer, find_closing, segments
from lingu_ray.corpus.chat_template import CannotEncode, ChatTemplate
from lingu_ray.corpus.row import PLACEHOLDER, Messages, answer_ends

QUESTION, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
PICTURE = {"role": "user", "content": f"{PLACEHOLDER}c"}
PROBES: tuple[Messages, ...] = (
    [QUESTION, ANSWER],
    [QUESTION, ANSWER, QUESTION, ANSWER],
    [PICTURE, ANSWER],
    [PICTURE, ANSWER, PICTURE, ANSWER],
)
"""Usual conversations; a template that cannot render them for training is refused."""


class Renderer:
    """A student's chat template, and the special tokens that end its answers."""

    def __init__(self, processor: Any) -> None:
        self.template = ChatTemplate(processor)
        tokenizer = processor.tokenizer
        added = tokenizer.added_tokens_decoder.values()
        self.special_tokens = [str(token) for token in added if token.special]
        self._other_tokens = [str(token) for token in added if not token.special and str(token).strip()]
        self.eos: str = tokenizer.eos_token or ""

    def answers(self, messages: Messages) -> list[Answer]:
        """Find the answers of a conversation, each in the rendering of the conversation up to it.

        Raises:
            CannotEncode: `find_answer` or `check_prompts` raises.
        """
        ends = answer_ends(messages)
        answers = [find_answer(self.template, messages[:end], self._closings) for end in ends]
        check_prompts(messages[: ends[-1]], answers[-1].rendering)
        return answers

    def conversation(self, answers: list[Answer]) -> list[Segment]:
        """The conversation up to the last of these answers."""
        return segments(answers, self.eos)

    def prompt(self, messages: Messages, expanded: bool = True) -> str:
        """The text up to where the next answer begins, one image token an image; `expanded`: see `ChatTemplate`.

        Raises:
            CannotEncode: the template refuses the conversation.
        """
        text = self.template.render(messages, add_generation_prompt=True, expanded=expanded)
        if self._closes_answers:
            return text
        answers = []
        for end in answer_ends(messages):
            with suppress(CannotEncode):  # an answer that a model generated may be anything
                answers += [find_answer(self.template, messages[:end], self._closings)]
        return closed(text, answers, self.eos)

    @cached_property
    def end_of_turn(self) -> str:
        """The token that ends an answer: the template's own, else EOS.

        Raises:
            CannotEncode: there is neither, or the template refuses a question with its answer.
        """
        token = (self._closing or [self.eos])[-1]
        if not token:
            raise CannotEncode(
                "neither chat template nor tokenizer has a special token that ends an answer: name its eos_token in "
                "tokenizer_config.json"
            )
        return token

    @cached_property
    def reserved_tokens(self) -> set[str]:
        """Special tokens that the template writes around texts, those that close answers, and EOS."""
        written = [self.eos]
        for probe in (*PROBES, [{"role": "system", "content": "d"}, QUESTION, ANSWER]):
            with suppress(CannotEncode):
                answers = self.answers(probe)
                written += [segment.text for segment in self.conversation(answers) if not segment.is_target]
                written += self._closing
        return {token for token in (*self.special_tokens, *self._closing) if any(token in text for text in written)}

    @cached_property
    def _closing(self) -> list[str]:
        """The tokens by which the template closes answers.

        Raises:
            CannotEncode: the template refuses a question with its answer.
        """
        return find_closing(self.template, [QUESTION], self.special_tokens, self._other_tokens)

    @cached_property
    def _closes_answers(self) -> bool:
        """Whether the template closes answers; True if it refuses the question that would tell."""
        try:
            return bool(self._closing)
        except CannotEncode:
            return True

    @cached_property
    def _closings(self) -> list[str]:
        """Texts that may close an answer."""
        return [*self.special_tokens, "".join(self._closing)]
