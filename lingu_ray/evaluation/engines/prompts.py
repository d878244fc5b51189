"""From requests to prompts, and from generated tokens to text: the same for all engines.

A chat prompt is encoded by the corpus's encoder, as the student was trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from lingu_ray.corpus.chat_template import CannotEncode
from lingu_ray.corpus.encode import Encoder, Sample
from lingu_ray.corpus.images import decode_image
from lingu_ray.corpus.row import PLACEHOLDER, Messages
from lingu_ray.errors import UserError
from lingu_ray.evaluation.engines.engine import Answer, GenerateRequest
from lingu_ray.evaluation.engines.load import ModelFiles
from lingu_ray.evaluation.engines.scoring import first_ids, leading_ids
from lingu_ray.evaluation.metrics.reasoning import MARKS, TOKENS, reasoning_length

ENCODED_AT_ONCE = 64  # questions whose images are decoded at once


@dataclass(frozen=True)
class TextProcessor:
    """What the encoder needs of a processor, for a text-only model."""

    tokenizer: PreTrainedTokenizerBase
    image_token: str = PLACEHOLDER
    image_token_id: int = -1
    chat_template: None = None


class Prompts:
    """Prompts for a model."""

    def __init__(self, files: ModelFiles) -> None:
        self.files = files
        self.tokenizer = files.tokenizer
        self.encoder = Encoder(files.processor or TextProcessor(files.tokenizer), files.max_length)

    def check(self, request: GenerateRequest) -> None:
        """Refuse a request that the model cannot take.

        Raises:
            UserError: images for a text-only model or for raw text, or another number of images than the prompt marks.
        """
        if request.images and self.files.processor is None:
            raise UserError(f"{self.files.path} takes no images, and {_short(request)} has images")
        if request.images and not request.chat:
            raise UserError(f"{_short(request)} is raw text, which has no images")
        marks = request.prompt.count(PLACEHOLDER)
        if request.chat and marks and marks != len(request.images):
            raise UserError(f"{_short(request)} has {len(request.images)} images and {marks} marks {PLACEHOLDER}")

    def encode(self, request: GenerateRequest) -> Sample:
        """Token ids and vision tensors up to the answer.

        Raises:
            UserError: as `check`; or prompt and new tokens do not fit the model's context.
        """
        self.check(request)
        sample = self._asked(request) if self._chats(request) else self._raw(request)
        if len(sample) + request.max_new_tokens > self.files.max_length:
            raise self.too_long(request)
        return sample

    def with_pictures(self, request: GenerateRequest) -> tuple[list[int], list[Image.Image]]:
        """Token ids with one placeholder an image, as vLLM takes them, and the images (errors as `check`)."""
        self.check(request)
        text = self.encoder.prompt(_messages(request), expanded=False)
        return self.encoder.tokenize(text), [decode_image(image) for image in request.images]

    def too_long(self, request: GenerateRequest) -> UserError:
        """The error for a prompt that does not fit."""
        return UserError(
            f"{_short(request)} and {request.max_new_tokens} new tokens do not fit the context of {self.files.path}, "
            f"{self.files.max_length} tokens"
        )

    def answer(self, request: GenerateRequest, ids: list[int]) -> Answer:
        """The text of generated tokens, up to an end token or the first of the stop texts behind reasoning.

        Spaces around it are no part of an answer in a chat, and stay where raw text goes on. Reasoning that the prompt
        begins begins the text.
        """
        ended = ids[-1:] and ids[-1] in self.ends
        said = ids[:-1] if ended else ids
        may_reason = self._may_reason(request)
        text, begin = self._decode(said, self._marks if may_reason else frozenset()), 0
        if may_reason:
            text = self._opening + text
            begin = reasoning_length(text)
        found = [place for stop in request.stop if (place := text.find(stop, begin)) >= 0]
        text = text[: min(found, default=len(text))]
        cut_off = not ended and not found and len(ids) >= request.max_new_tokens
        return Answer(text.strip() if request.chat else text, cut_off)

    def stops(self, request: GenerateRequest) -> list[str]:
        """Texts at which generation may end; none where a model may reason first, whose reasoning may hold them."""
        return [] if self._may_reason(request) else list(request.stop)

    @cached_property
    def ends(self) -> list[int]:
        """Tokens that end an answer: those of the model's settings, and the one that ends its chat turns."""
        vocabulary = self.files.config.get_text_config(decoder=True).vocab_size  # a tokenizer may have more
        return sorted(token for token in self.files.eos_ids | {self.encoder.end_of_turn_id} if token < vocabulary)

    def _may_reason(self, request: GenerateRequest) -> bool:
        """Whether the model has tokens that mark reasoning, and is asked in the template that may ask for it."""
        return self._chats(request) and bool(self._marks)

    @cached_property
    def _opening(self) -> str:
        """What the template writes itself of an answer's reasoning, before the model does."""
        prompt = self.encoder.prompt([{"role": "user", "content": "1"}])
        return next((opening for opening in MARKS if prompt.rstrip().endswith(opening)), "")

    @cached_property
    def _marks(self) -> frozenset[int]:
        """The vocabulary's tokens that mark reasoning."""
        vocabulary = self.tokenizer.get_vocab()
        return frozenset(vocabulary[token] for token in TOKENS if token in vocabulary)

    def _decode(self, ids: list[int], marks: frozenset[int]) -> str:
        """The text of tokens, without special ones but for `marks`."""
        groups = groupby(ids, key=marks.__contains__)
        texts = [self.tokenizer.decode(list(group), skip_special_tokens=not marked) for marked, group in groups]
        return "".join(map(str, texts))  # each is one: only a list of lists gives a list of texts

    def _chats(self, request: GenerateRequest) -> bool:
        """Whether a chat template is used; a causal LM without one gets raw text."""
        return request.chat and (self.files.processor is not None or self.tokenizer.chat_template is not None)

    def _asked(self, request: GenerateRequest) -> Sample:
        try:
            return self.encoder.encode_conversation(_messages(request), list(request.images))
        except CannotEncode as error:
            raise UserError(f"{self.files.path} cannot be asked {_short(request)}: {error}") from error

    def _raw(self, request: GenerateRequest) -> Sample:
        ids = self.tokenizer(request.prompt, add_special_tokens=False).input_ids
        ids_T = torch.tensor(leading_ids(self.tokenizer) + ids or first_ids(self.tokenizer))
        nothing_T = torch.zeros_like(ids_T, dtype=torch.bool)
        return Sample("evaluation", 0, ids_T, nothing_T, nothing_T, {})


def _messages(request: GenerateRequest) -> Messages:
    """The question as a conversation; images without marks come first."""
    marked = PLACEHOLDER in request.prompt
    return [
        {"role": "user", "content": request.prompt if marked else PLACEHOLDER * len(request.images) + request.prompt}
    ]


def _short(request: GenerateRequest) -> str:
    return f"the prompt {request.prompt[:80]!r}"
