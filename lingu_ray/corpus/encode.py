"""Encoding: a row becomes a sample of token ids, masks and vision tensors.

The whole conversation is rendered once by the student's chat template, its images are expanded as the student's
processor does, and the text is tokenized in one piece. So every token is one that the model meets at inference. The
answers with their end-of-turn tokens are found in the whole (`answers.py`); they are the targets of the loss.

- A token on the border of prompt and answer belongs to the answer: it is the first that the model has to generate.
- Special tokens that the tokenizer adds at the end of a text (EOS) are left out, those at its start (BOS) kept, unless
  the template has written BOS itself.
- Text that holds a special token of the template, or EOS, would end a turn where none ends: such rows are refused.

Shape suffixes: T tokens of a sequence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lingu_ray.corpus.answers import Answer, Segment
from lingu_ray.corpus.chat_template import CannotEncode
from lingu_ray.corpus.image_tokens import ImageTokens, Size
from lingu_ray.corpus.images import decode_image, image_size
from lingu_ray.corpus.rendering import PROBES, Renderer
from lingu_ray.corpus.row import PLACEHOLDER, Messages, Row, answer_ends, placeholders
from lingu_ray.corpus.whole_tokens import Tokens, WholeTokenizer
from lingu_ray.errors import UserError

_PROBE_SIZES = ((64, 48), (40, 60))


class PromptTooLong(CannotEncode):
    """The prompt of the first answer leaves no room for one answer token within `max_length`."""


@dataclass
class Sample:
    """One encoded row: `input_ids_T` int64, the masks bool.

    `supervised_T` marks the answers' tokens, their end-of-turn token included: the targets of the loss. `visual_T`
    marks the placeholders that image features replace. `vision` holds exactly what the student's forward takes besides
    the ids (`pixel_values`, …; floats, int64 or bool), and is empty for text. `sampled_from`: where the answer begins
    that the student sampled itself, at the end of the sample; None: all answers are the corpus's.
    """

    source: str
    position: int
    input_ids_T: Tensor
    supervised_T: Tensor
    visual_T: Tensor
    vision: dict[str, Tensor]
    sampled_from: int | None = None

    def __len__(self) -> int:
        return len(self.input_ids_T)


@dataclass(frozen=True)
class Fitted:
    """The turns of a row whose answers begin within `max_length`, with the sizes of their images.

    `tokens`: of these turns, not cut yet; `whole`: number of tokens of the whole row.
    """

    messages: Messages
    sizes: list[Size]
    tokens: Tokens
    whole: int


class Encoder:
    """Turn rows into samples with a Hugging Face processor. Has no state: threads may share it.

    Args:
        processor: of an image-text-to-text model, with `tokenizer`, `image_processor` and `image_token_id`.
        max_length: longest sample in tokens, image tokens included.
        pixels: dtype of `pixel_values`. Under autocast every family's tower first rounds them to its dtype.
    """

    def __init__(self, processor: Any, max_length: int, pixels: torch.dtype = torch.float32) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.max_length, self.pixels = max_length, pixels
        # Gemma 3's processor names the token that templates write; its tokenizer, the one that features replace
        self.image_token_id: int = getattr(self.tokenizer, "image_token_id", None) or processor.image_token_id
        self.image_token: str = processor.image_token
        self._renderer = Renderer(processor)
        self._whole = WholeTokenizer(processor)
        self._images = ImageTokens(processor)

    @property
    def template(self) -> str:
        """The chat template that rows are rendered with; Transformers' `apply_chat_template` takes it as it is."""
        return self._renderer.template.source

    def check_template(self) -> None:
        """Check that usual conversations can be encoded, with the same tokens as the student's processor makes.

        Raises:
            UserError: they cannot, so no row could.
        """
        with self._template_errors("the student's chat template", "student.path, for a new VLM of teacher.path"):
            for probe in PROBES if hasattr(self.processor, "image_processor") else PROBES[:2]:
                self._check(probe)

    def learns_last_answer_alone(self) -> bool:
        """Whether the template shows a conversation's earlier answers otherwise than they are generated (Qwen3)."""
        several = PROBES[1]
        learned = self._renderer.conversation(self._renderer.answers(several))
        return sum(segment.is_target for segment in learned) < len(answer_ends(several))

    def encode(self, row: Row) -> Sample:
        """Encode a row into at most `max_length` tokens: the last answer is cut, later turns are left out.

        Raises:
            PromptTooLong: not even one token of the first answer fits.
            CannotEncode: chat template, tokenizer or processor leave a doubt about the sample.
        """
        self._check_text(row.messages)
        fitted, vision = self._fit_and_see(row)
        return self._sample(row, Tokens(fitted.tokens.ids[: self.max_length], fitted.tokens.answers), vision)

    def encode_question(self, row: Row) -> Sample:
        """Encode a row up to the last answer that `encode` keeps, as a prompt for generation (errors as `encode`)."""
        fitted, vision = self._fit_and_see(row)
        return self._sample(row, self._question(fitted.messages[:-1], fitted.sizes), vision)

    def encode_conversation(self, messages: Messages, images: list[bytes]) -> Sample:
        """Encode a conversation up to its next answer. It is for inference, so any chat template works.

        Raises:
            CannotEncode: the template refuses the conversation, or the processor an image.
        """
        row = Row("conversation", 0, messages, images, distill=False)
        pictures = [decode_image(image) for image in images]
        vision = self._vision(pictures)
        return self._sample(row, self._question(messages, [picture.size for picture in pictures]), vision)

    def length(self, row: Row) -> int:
        """Count the tokens of the whole row, uncut. Image tokens follow from sizes; no image is processed.

        Accepts the rows that `encode` accepts, and raises what it raises.
        """
        self._check_text(row.messages)
        return self._fit(row, [image_size(image) for image in row.images]).whole

    def fitted(self, row: Row) -> Row:
        """The row without the last turns that `encode` leaves out (errors as `encode`)."""
        fitted = self._fit(row, [image_size(image) for image in row.images])
        return replace(row, messages=fitted.messages, images=row.images[: len(fitted.sizes)])

    def prompt(self, messages: Messages, expanded: bool = True) -> str:
        """The text up to where the next answer begins, one image token an image; `expanded`: see `ChatTemplate`."""
        return self._renderer.prompt(messages, expanded)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer adds at its start."""
        return self._whole.ids(text)

    @property
    def pad_id(self) -> int:
        """Id for padding. It is masked everywhere, so any id but the image token's would do."""
        return self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0

    @cached_property
    def end_of_turn_id(self) -> int:
        """Id that ends an answer, at which generation has to stop.

        Raises:
            UserError: there is none.
        """
        whose = f"chat template of {self.tokenizer.name_or_path or 'the model'}"
        with self._template_errors(whose, "its processor"):
            return self.tokenizer.convert_tokens_to_ids(self._renderer.end_of_turn)

    def _fit_and_see(self, row: Row) -> tuple[Fitted, dict[str, Tensor]]:
        """`_fit`, with the vision tensors of the kept images; making those first fills the cache of image texts."""
        pictures = [decode_image(image) for image in row.images]
        vision = self._vision(pictures)
        fitted = self._fit(row, [picture.size for picture in pictures])
        kept = len(fitted.sizes)
        return fitted, vision if kept == len(pictures) else self._vision(pictures[:kept])

    def _fit(self, row: Row, sizes: list[Size]) -> Fitted:
        """Leave out the last turns until the last answer begins within `max_length` and is a target of the loss."""
        answers = self._renderer.answers(row.messages)
        whole = 0
        while True:
            messages = row.messages[: answer_ends(row.messages)[len(answers) - 1]]
            images = placeholders(messages)
            tokens = self._tokens(answers, sizes[:images])
            whole = whole or len(tokens.ids)
            beyond = sum(begin >= self.max_length for begin, _ in tokens.answers)
            if not beyond:
                return Fitted(messages, sizes[:images], tokens, whole)
            answers = answers[:-beyond]
            while answers and not answers[-1].is_target:
                answers.pop()
            if not answers:
                begin = tokens.answers[0][0]
                raise PromptTooLong(f"the prompt has {begin} tokens, corpus.max_length is {self.max_length}")

    def _tokens(self, answers: list[Answer], sizes: list[Size]) -> Tokens:
        """The tokens of a conversation up to its last answer."""
        return self._expanded(self._renderer.conversation(answers), sizes)

    def _question(self, messages: Messages, sizes: list[Size]) -> Tokens:
        """The tokens of a conversation up to where its next answer begins."""
        return self._expanded([Segment(self._renderer.prompt(messages), is_target=False)], sizes)

    def _expanded(self, conversation: list[Segment], sizes: list[Size]) -> Tokens:
        """The tokens of a rendered conversation with expanded images, and which of them are answers."""
        written = sum(segment.text.count(self.image_token) for segment in conversation)
        if written != len(sizes):
            raise CannotEncode(f"the chat template writes {written} image tokens, and there are {len(sizes)} images")
        images = iter(self._images.texts(sizes))
        text, spans = "", []
        for segment in conversation:
            begin = len(text)
            text += re.sub(re.escape(self.image_token), lambda _: next(images), segment.text)
            spans += [(begin, len(text))] if segment.is_target else []
        return self._whole.tokens(text, spans)

    def _sample(self, row: Row, tokens: Tokens, vision: dict[str, Tensor]) -> Sample:
        ids_T = torch.tensor(tokens.ids)
        supervised_T = torch.zeros(len(ids_T), dtype=torch.bool)
        for begin, end in tokens.answers:
            supervised_T[begin:end] = True
        return Sample(
            source=row.source,
            position=row.position,
            input_ids_T=ids_T,
            supervised_T=supervised_T,
            visual_T=ids_T == self.image_token_id,
            vision=vision,
        )

    def _vision(self, images: list[Image.Image]) -> dict[str, Tensor]:
        vision = self._images.tensors(images)
        return vision | {key: value.to(self.pixels) for key, value in vision.items() if key == "pixel_values"}

    def _check_text(self, messages: Messages) -> None:
        """Refuse text with tokens that only the template may write."""
        for message in messages:
            found = self._reserved.search(message["content"].replace(PLACEHOLDER, " "))
            if found:
                raise CannotEncode(f"the text holds {found.group()}, a special token of the student's conversations")

    @cached_property
    def _reserved(self) -> re.Pattern[str]:
        """A pattern of the special tokens that the template writes, of EOS, padding, and image placeholders."""
        reserved = self._renderer.reserved_tokens | {self.tokenizer.pad_token or ""}
        if self.image_token_id >= 0:  # a text-only model's is negative
            reserved.add(self.tokenizer.convert_ids_to_tokens(self.image_token_id))
        return re.compile("|".join(re.escape(token) for token in sorted(reserved) if token) or "(?!)")

    def _check(self, probe: Messages) -> None:
        """Encode a conversation, and compare its first question with the processor's own tokens."""
        answers = self._renderer.answers(probe)
        _ = self._renderer.end_of_turn  # raises where there is none
        sizes = list(_PROBE_SIZES[: placeholders(probe)])
        self._tokens(answers, sizes)
        if not sizes:
            return
        pictures = [Image.linear_gradient("L").resize(size).convert("RGB") for size in sizes]
        self._images.tensors(pictures)  # checks that they are written like the blank ones of `_tokens`
        if len(probe) > 2:
            return
        text = self._renderer.prompt(probe[:-1], expanded=False)
        special = self._whole.adds_special_tokens(text)
        asked = self.processor(text=[text], images=[pictures], add_special_tokens=special)["input_ids"][0]
        ids = self._question(probe[:-1], sizes).ids
        if list(asked[: len(ids)]) != ids:
            name = type(self.processor).__name__
            raise CannotEncode(
                f"{name} writes more around a question than the template, which an answer does not follow"
            )

    @contextmanager
    def _template_errors(self, whose: str, place: str) -> Iterator[None]:
        try:
            yield
        except CannotEncode as error:
            raise UserError(
                f"{whose}: {error}. Set one that conversations can be trained with, in the chat_template.jinja of "
                f"{place}"
            ) from error
