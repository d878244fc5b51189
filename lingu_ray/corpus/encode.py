"""Encoding: a row becomes a sample of token ids, masks and vision tensors.

A conversation is rendered by the student's chat template and cut at the answers. What precedes an answer is exactly
what the model gets at inference; the answer and its end-of-turn token are the targets. Prompts (with their images) are
encoded by the processor and answers by the tokenizer, and the ids are joined: so no token spans the border, and a
prompt has the same tokens in training and at inference.

Shape suffixes: T tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lingu_ray.corpus.images import decode_image, image_size
from lingu_ray.corpus.row import PLACEHOLDER, Messages, Row
from lingu_ray.errors import UserError

# For students that come without a chat template.
FALLBACK_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
# PaliGemma's processor writes BOS and newline itself where there are images, which it wants first.
PALIGEMMA_TEMPLATE = (
    "{% for message in messages %}{% set text = message['content'] %}{% set images = text.count('<image>') %}"
    "{% if message['role'] == 'assistant' %}{{ text }}{{ eos_token }}"
    "{% elif images %}{{ '<image>' * images }}{{ text.replace('<image>', '') }}"
    "{% else %}{{ bos_token }}{{ text }}{{ '\\n' }}{% endif %}{% endfor %}"
)
# Everything else that a processor returns is for the vision tower.
TOKEN_KEYS = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels"}


class PromptTooLong(ValueError):
    """The prompt of the first answer leaves no room for one answer token within `max_length`."""


@dataclass
class Sample:
    """One encoded row: `input_ids_T` int64, the masks bool.

    `supervised_T` marks the answers' tokens, their end-of-turn token included: the targets of the loss. `visual_T`
    marks the placeholders that image features replace. `vision` holds exactly what the student's forward takes besides
    the ids (`pixel_values`, …; float32 or int64), and is empty for text. `sampled_from`: where an answer of the
    student's own begins, which ends the sample; None: all answers are the corpus's.
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
class Turn:
    """A prompt up to an answer, and the answer; `images` is how many images stand in the prompt."""

    prompt: str
    answer: str
    images: int


class Encoder:
    """Turn rows into samples with a Hugging Face processor. Has no state: threads may share it.

    Args:
        processor: of an image-text-to-text model, with `tokenizer`, `image_processor` and `image_token_id`.
        max_length: longest sample in tokens, image tokens included.
    """

    def __init__(self, processor: Any, max_length: int) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.max_length = max_length
        # Gemma 3's processor names the token that templates write; its tokenizer, the one that features replace
        self.image_token_id: int = getattr(self.tokenizer, "image_token_id", None) or processor.image_token_id
        self.image_token: str = processor.image_token

    def encode(self, row: Row) -> Sample:
        """Encode a row into at most `max_length` tokens: the last answer is cut, later turns are left out.

        Raises:
            PromptTooLong: not even one token of the first answer fits.
            UserError: the chat template cannot be cut at the answers.
        """
        return self._join(row, with_last_answer=True)

    def encode_question(self, row: Row) -> Sample:
        """Encode a row up to its last answer, which is left out, as the start of generation (errors as `encode`)."""
        return self._join(row, with_last_answer=False)

    def encode_conversation(self, messages: Messages, images: list[bytes]) -> Sample:
        """Encode a conversation up to where its next answer begins.

        For inference, not for training: earlier answers are not told apart, so any chat template works.
        """
        text = self._render(messages, add_generation_prompt=True)
        ids, vision = self._prompt(Turn(text, "", len(images)), iter(images), first=True)
        ids_T = torch.tensor(ids)
        supervised_T = torch.zeros(len(ids), dtype=torch.bool)
        return Sample("conversation", 0, ids_T, supervised_T, ids_T == self.image_token_id, vision)

    def length(self, row: Row) -> int:
        """Count the tokens of the whole row, nothing cut. Images count by their size and are not processed.

        Raises:
            PromptTooLong: not even one token of the first answer fits `max_length`.
        """
        total = 0
        images = iter(row.images)
        for index, turn in enumerate(self.turns(row.messages)):
            total += len(self._tokens(turn.prompt, special=index == 0 and not self.has_bos(turn.prompt)))
            if turn.images:
                total += self._added_by_images(tuple(image_size(next(images)) for _ in range(turn.images)))
            if index == 0 and total >= self.max_length:
                raise PromptTooLong(f"the prompt has {total} tokens, corpus.max_length is {self.max_length}")
            total += len(self._tokens(turn.answer))
        return total

    @cached_property
    def _added_by_images(self) -> Callable[[tuple[tuple[int, int], ...]], int]:
        """How many tokens a turn's images of these sizes add to what the template writes; each case is tried once."""

        @lru_cache(maxsize=65536)
        def added(sizes: tuple[tuple[int, int], ...]) -> int:
            text = self._render([{"role": "user", "content": PLACEHOLDER * len(sizes) + "?"}])
            images = [Image.new("RGB", size) for size in sizes]
            expanded = self.processor(text=text, images=[images], add_special_tokens=False)
            return len(expanded["input_ids"][0]) - len(self._tokens(text))

        return added

    def _join(self, row: Row, with_last_answer: bool) -> Sample:
        """The turns that fit, joined."""
        ids: list[int] = []
        answers: list[tuple[int, int]] = []  # where they start and stop
        visions: list[dict[str, Tensor]] = []
        images = iter(row.images)
        for index, turn in enumerate(self.turns(row.messages)):
            prompt_ids, vision = self._prompt(turn, images, first=index == 0)
            start = len(ids) + len(prompt_ids)
            if start >= self.max_length and index == 0:
                raise PromptTooLong(f"the prompt has {start} tokens, corpus.max_length is {self.max_length}")
            if start >= self.max_length:
                break
            ids += prompt_ids
            ids += self._tokens(turn.answer)[: self.max_length - start]
            answers.append((start, len(ids)))
            visions += [vision] if vision else []
        if not with_last_answer:
            ids = ids[: answers[-1][0]]
        ids_T = torch.tensor(ids)
        supervised_T = torch.zeros(len(ids), dtype=torch.bool)
        for start, stop in answers:
            supervised_T[start:stop] = True
        return Sample(
            source=row.source,
            position=row.position,
            input_ids_T=ids_T,
            supervised_T=supervised_T,
            visual_T=ids_T == self.image_token_id,
            vision=join_vision(visions),
        )

    def _prompt(self, turn: Turn, images: Iterator[bytes], first: bool) -> tuple[list[int], dict[str, Tensor]]:
        special = first and not self.has_bos(turn.prompt)
        if not turn.images:
            return self._tokens(turn.prompt, special), {}
        decoded = [decode_image(next(images)) for _ in range(turn.images)]
        encoded = self.processor(text=turn.prompt, images=[decoded], add_special_tokens=special, return_tensors="pt")
        vision = {key: value for key, value in encoded.items() if key not in TOKEN_KEYS}
        return encoded["input_ids"][0].tolist(), vision

    def _tokens(self, text: str, special: bool = False) -> list[int]:
        return self.tokenizer(text, add_special_tokens=special)["input_ids"]

    def has_bos(self, text: str) -> bool:
        """Whether the template writes the BOS token itself, so that the tokenizer must not add a second one."""
        bos = self.tokenizer.bos_token
        return bool(bos) and text.startswith(bos)

    def turns(self, messages: Messages) -> list[Turn]:
        """Render the conversation and cut it at its answers. What follows the last answer is left out."""
        turns = []
        done = 0  # messages
        said = ""  # their rendering
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(messages[:index], add_generation_prompt=True)
            answered = self._render(messages[: index + 1])
            if not prompt.startswith(said) or not answered.startswith(prompt):
                name = self.tokenizer.name_or_path or "the student"
                raise UserError(
                    f"chat template of {name}: the rendering of a conversation up to answer {len(turns) + 1} is not "
                    "the start of the rendering with that answer, so answers cannot be told from prompts. Set a chat "
                    "template that only appends, in the processor's chat_template.jinja"
                )
            answer, rest = self._cut_answer(answered[len(prompt) :], message["content"])
            images = sum(m["content"].count(PLACEHOLDER) for m in messages[done:index])
            turns.append(Turn(prompt[len(said) :], answer, images))
            done = index + 1
            said = answered[: len(answered) - len(rest)]
        return turns

    def _cut_answer(self, tail: str, content: str) -> tuple[str, str]:
        """The answer with its end-of-turn token, and what the template writes after it.

        Where the template ends a turn with none of the tokenizer's special tokens (LLaVA 1.5), the EOS token is
        appended, or the student would never learn to stop.
        """
        start = tail.find(content.strip())
        if start < 0:
            raise UserError(f"the chat template changes the text of an answer: {content[:80]!r} became {tail[:80]!r}")
        end = start + len(content.strip())
        found = [(tail.find(token, end), token) for token in self._special_tokens]
        ends = [(at, -len(token), token) for at, token in found if at >= 0]
        if ends:
            at, _, token = min(ends)
            return tail[: at + len(token)], tail[at + len(token) :]
        return tail[:end] + (self.tokenizer.eos_token or ""), tail[end:]

    @property
    def pad_id(self) -> int:
        """Id that batches are padded with; it is masked everywhere, so any id but the image token's works."""
        return self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0

    @cached_property
    def end_of_turn_id(self) -> int:
        """Id that ends an answer, at which generation has to stop."""
        probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        return self._tokens(self.turns(probe)[0].answer)[-1]

    @cached_property
    def _special_tokens(self) -> list[str]:
        return [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]

    @cached_property
    def _template(self) -> str:
        fallback = PALIGEMMA_TEMPLATE if type(self.processor).__name__ == "PaliGemmaProcessor" else FALLBACK_TEMPLATE
        template = getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template or fallback
        return template["default"] if isinstance(template, dict) else template

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether the template reads content as parts (`{"type": "text", …}`) rather than as a string."""
        probe = [{"role": "user", "content": [{"type": "text", "text": "probe"}]}]
        try:
            rendered = self.tokenizer.apply_chat_template(probe, chat_template=self._template, tokenize=False)
        except (TypeError, ValueError):
            return False
        return "'type'" not in rendered and "probe" in rendered

    def _render(self, messages: Messages, add_generation_prompt: bool = False) -> str:
        contents = [self._parts(m["content"]) if self._takes_parts else self._plain(m["content"]) for m in messages]
        conversation = [{"role": m["role"], "content": c} for m, c in zip(messages, contents, strict=True)]
        return self.tokenizer.apply_chat_template(
            conversation,
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )

    def _plain(self, text: str) -> str:
        return text.replace(PLACEHOLDER, self.image_token)

    @staticmethod
    def _parts(text: str) -> list[dict[str, str]]:
        texts = text.split(PLACEHOLDER)
        parts: list[dict[str, str]] = []
        for index, piece in enumerate(texts):
            parts += [{"type": "image"}] if index else []
            parts += [{"type": "text", "text": piece}] if piece else []
        return parts


def join_vision(visions: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join the vision tensors of several prompts, images in order; text has none.

    Idefics3's tensors `[1, images, …]` (told by their `pixel_attention_mask`) are joined along the images: the model
    flattens them and fills the placeholders of the whole batch in order. All others are joined along the first
    dimension. What differs in size beside it (tiles of an image, height, width) is filled up with zeros at its end.
    """
    keys = visions[0].keys() if visions else ()
    nested = "pixel_attention_mask" in keys
    return {key: _join([vision[key] for vision in visions], dim=1 if nested else 0) for key in keys}


def _join(tensors: list[Tensor], dim: int) -> Tensor:
    largest = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]

    def fill_up(tensor: Tensor) -> Tensor:
        missing = [
            0 if i == dim else most - size for i, (most, size) in enumerate(zip(largest, tensor.shape, strict=True))
        ]
        return F.pad(tensor, [side for amount in reversed(missing) for side in (0, amount)])

    return torch.cat([fill_up(tensor) for tensor in tensors], dim)
