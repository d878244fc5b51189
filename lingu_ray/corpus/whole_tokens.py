"""Tokens of a whole text, and which of them are the answers in it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lingu_ray.corpus.chat_template import CannotEncode

Span = tuple[int, int]  # begin, end


@dataclass(frozen=True)
class Tokens:
    """Token ids of a text, and where its answers' tokens begin and end."""

    ids: list[int]
    answers: list[Span]


class WholeTokenizer:
    """Tokenizes whole texts as the student's processor does."""

    def __init__(self, processor: Any) -> None:
        self.tokenizer = processor.tokenizer
        defaults = getattr(getattr(processor, "valid_processor_kwargs", None), "_defaults", {})
        self._adds_special_tokens = defaults.get("text_kwargs", {}).get("add_special_tokens", True)

    def adds_special_tokens(self, text: str) -> bool:
        """Whether the tokenizer adds tokens such as BOS to a text; not if the template has written BOS itself."""
        bos = self.tokenizer.bos_token
        return self._adds_special_tokens and not (bos and text.startswith(bos))

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer adds at its start."""
        return self.tokens(text, []).ids

    def tokens(self, text: str, answers: list[Span]) -> Tokens:
        """The tokens of a text whose answers are between these characters.

        A token on the border of a prompt and an answer belongs to the answer, unless it is a special token, which may
        include the white space after it (Phi-3). Special tokens that the tokenizer adds at the end are left out.

        Raises:
            CannotEncode: an answer has no token, or the tokenizer does not tell where its tokens stand in the text; or
                there are answers, and a part of the text is unknown to the tokenizer.
        """
        special = self.adds_special_tokens(text)
        if not self.tokenizer.is_fast:
            if answers:
                raise CannotEncode(f"{type(self.tokenizer).__name__} does not tell where its tokens stand in the text")
            bare, ids = (self.tokenizer(text, add_special_tokens=added)["input_ids"] for added in (False, special))
            while len(ids) > len(bare) and ids[-len(bare) :] != bare:
                ids.pop()
            return Tokens(ids, [])
        encoded = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        sources = encoded.sequence_ids(0)  # None: a token that was added to the text
        stop = len(sources)
        while stop and sources[stop - 1] is None:
            stop -= 1
        ids, offsets = encoded["input_ids"][:stop], encoded["offset_mapping"][:stop]
        inside = [self._inside(ids, offsets, answer) for answer in answers]
        if any(begin >= end for begin, end in inside):
            raise CannotEncode("the tokenizer has no token for an answer")
        tokens = Tokens(ids, inside)
        if answers and self.tokenizer.unk_token_id in ids:
            self._check_known(text, tokens, offsets)
        return tokens

    def _check_known(self, text: str, tokens: Tokens, offsets: list[Span]) -> None:
        """Check that the tokenizer knows all of a text to be trained on, but for white space in prompts."""
        for place, (number, span) in enumerate(zip(tokens.ids, offsets, strict=True)):
            part = text[slice(*span)]
            is_said = any(begin <= place < end for begin, end in tokens.answers)
            if number != self.tokenizer.unk_token_id or part.strip() == self.tokenizer.unk_token:
                continue
            if part.strip() or (part and is_said):
                raise CannotEncode(
                    f"the tokenizer has no token for {part[:20]!r} and makes {self.tokenizer.unk_token} of it: take it "
                    "out of the text"
                )

    def _inside(self, ids: list[int], offsets: list[Span], answer: Span) -> Span:
        first = bisect_right(offsets, answer[0], key=lambda span: span[1])
        if first < len(ids) and offsets[first][0] < answer[0] and ids[first] in self._special_ids:
            first += 1
        return first, bisect_left(offsets, answer[1], key=lambda span: span[0])

    @cached_property
    def _special_ids(self) -> set[int]:
        return {number for number, token in self.tokenizer.added_tokens_decoder.items() if token.special}
