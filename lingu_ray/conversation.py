"""A conversation with a model, about images too: it keeps the messages, and streams the answers.

The corpus's encoder makes the prompt, so it is what a student of that model is trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TextStreamer

from lingu_ray.corpus.chat_template import CannotEncode
from lingu_ray.corpus.encode import Sample
from lingu_ray.corpus.images import decode_image
from lingu_ray.corpus.row import PLACEHOLDER, Messages
from lingu_ray.distill.generate import Prompt, generate_answers
from lingu_ray.errors import UserError
from lingu_ray.evaluation.engines.load import ModelFiles
from lingu_ray.evaluation.engines.prompts import Prompts


def read_image(path: Path) -> bytes:
    """The encoded image in a file.

    Raises:
        UserError: there is none, or it cannot be decoded.
    """
    try:
        encoded = path.read_bytes()
        decode_image(encoded)
    except Exception as error:  # PIL raises many kinds for broken files, by format
        raise UserError(f"image {path}: cannot be read: {error}") from error
    return encoded


class Conversation:
    """The messages so far, and the model that answers, in eval mode; `temperature` 0: by its likeliest tokens."""

    def __init__(self, files: ModelFiles, model: Any, temperature: float = 0.0, max_new_tokens: int = 256) -> None:
        self.files, self.model = files, model
        self.temperature, self.max_new_tokens = temperature, max_new_tokens
        self.prompts = Prompts(files)
        self.restart()

    def restart(self) -> None:
        """Forget all messages and images."""
        self.messages: Messages = []
        self.images: list[bytes] = []
        self.shown: list[bytes] = []  # images for the next question

    def show(self, *images: bytes) -> None:
        """Show images with the next question.

        Raises:
            UserError: the model is a text-only one.
        """
        if images and self.files.processor is None:
            raise UserError(f"{self.files.path} is a text-only model: it takes no images")
        self.shown += images

    def ask(self, question: str, write: Callable[[str], object]) -> str:
        """Answer a question; `write` is given the answer piece by piece as it is generated.

        Ctrl-C ends the answer; what was generated until then counts as the answer.

        Raises:
            UserError: the conversation does not fit the model's context, its chat template refuses it, marks `<image>`
                do not match the images, or the tokenizer is not the model's.
        """
        messages = [*self.messages, {"role": "user", "content": self._marked(question)}]
        images = [*self.images, *self.shown]
        try:
            sample = self.prompts.encoder.encode_conversation(messages, images)
        except CannotEncode as error:
            raise UserError(f"{self.files.path} cannot be asked: {error}") from error
        self._check_vocabulary(sample)
        room = self.files.max_length - len(sample)
        if room < 1:
            raise UserError(
                f"the conversation has {len(sample)} tokens, the context of {self.files.path} is "
                f"{self.files.max_length}; /new starts a new one"
            )
        answer = self._generate(sample, min(room, self.max_new_tokens), write)
        said = answer.replace(PLACEHOLDER, "")  # would count as an image
        self.messages = [*messages, {"role": "assistant", "content": said}]
        self.images, self.shown = images, []
        return answer

    def _check_vocabulary(self, sample: Sample) -> None:
        largest = int(sample.input_ids_T.max())
        if largest >= self.files.config.get_text_config(decoder=True).vocab_size:
            token = self.prompts.tokenizer.convert_ids_to_tokens(largest)
            raise UserError(
                f"the tokenizer of {self.files.path} writes the token {token!r}, which its model does not have: "
                "tokenizer or chat template are those of another model"
            )

    def _marked(self, question: str) -> str:
        """The question with a mark for each image that is shown with it; without marks of its own they come first."""
        marks, shown = question.count(PLACEHOLDER), len(self.shown)
        if marks and marks != shown:
            raise UserError(f"the question has {marks} marks {PLACEHOLDER}, and {shown} images are shown with it")
        return question if marks else PLACEHOLDER * shown + question

    def _generate(self, sample: Sample, max_new_tokens: int, write: Callable[[str], object]) -> str:
        streamer = _Streamer(self.prompts.tokenizer, write)
        try:
            generate_answers(
                self.model,
                [Prompt(sample.input_ids_T, sample.visual_T)],
                sample.vision,
                ends=self.prompts.ends,
                pad_id=self.prompts.encoder.pad_id,
                max_new_tokens=max_new_tokens,
                temperature=self.temperature,
                streamer=streamer,
            )
        except KeyboardInterrupt:
            streamer.end()
        return streamer.text.strip()


class _Streamer(TextStreamer):
    """Gives the answer's text, whole words at a time, to `write`, and keeps it."""

    def __init__(self, tokenizer: Any, write: Callable[[str], object]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write = write
        self.text = ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Take the next piece."""
        piece = text if self.text else text.lstrip()
        self.text += piece
        if piece:
            self.write(piece)
