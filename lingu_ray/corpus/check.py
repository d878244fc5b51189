"""Checks that decide whether a conversation becomes a row of the corpus or a reject."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lingu_ray.corpus.encode import Encoder, PromptTooLong
from lingu_ray.corpus.image_folder import ImageFolder
from lingu_ray.corpus.load_image import load_image
from lingu_ray.corpus.record import BadRecord, RawRow
from lingu_ray.corpus.row import PLACEHOLDER, Message, Messages, Row, is_target
from lingu_ray.corpus.turns import NUMBERED

OTHER_MEDIA = re.compile(r"<(video|audio)>|<\|(?i:video|audio)(_pad)?\|>")  # as files have them
PATH_IN_TEXT = re.compile(r"<img>\s*[^<\s][^<]*</img>")  # as files for Qwen-VL name a picture; in HTML it has no end
IMAGE_MARKS = re.compile(  # that other models and tools replace by an image
    r"<\|(image|img|image_pad|image_start|image_placeholder|image_\d+|vision_start|begin_of_image|imgpad|media_pad)\|>"
    r"|<(ImageHere|IMG_CONTEXT|image_placeholder|image_soft_token|start_of_image|im_patch|image_here|image_pad)>",
    re.IGNORECASE,
)
END_MARK = re.compile(  # of other models
    r"(<\|(endoftext|end_of_text|im_end|eot_id|eom_id|end|return)\|>|<end_of_turn>|<eos>|</s>|<｜end▁of▁sentence｜>)\s*$"
)
RENDERED = re.compile(  # what other templates and tools write around turns
    r"<\|(im_start|im_user|start_header_id|header_start|START_OF_TURN_TOKEN|user|assistant|prompter)\|>"
    r"|<\|start\|>(system|developer|user|assistant)|<｜(User|Assistant)｜>|<extra_id_1>(User|Assistant)|<start_of_turn>"
    r"|\[/INST\]|\[ASSISTANT\]|<(human|bot)>:|### (Human|Assistant):"
)
ASKED_TO_ANSWER = re.compile(r"(### (Response|Output)|(^|\n)(?i:assistant)|ASSISTANT):\s*$")  # at the end of a prompt
# where there are images; else it may be a tag of code, or of a forum
MISSPELLED = re.compile(r"<(?!image>)(?i:image|img)\s*/?>|</image>|\[IMG\]")
# white space, control characters, and marks without width
_INVISIBLE = re.compile("[\\s\\x00-\\x1f\\u00ad\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u2064\\ufeff]*")


@dataclass(frozen=True)
class Checker:
    """Checks raw rows of one source against the student's encoder."""

    encoder: Encoder
    source: str
    distill: bool

    def check(self, raw_row: RawRow, folder: ImageFolder) -> dict[str, Any]:
        """The fields of a good row, whose image paths are of `folder`.

        `truncated`: its answers are longer than `max_length` and will be cut.

        Raises:
            BadRecord: with the reason.
        """
        check_messages(raw_row.messages)
        check_placeholders(raw_row.messages, len(raw_row.images), self.encoder.image_token)
        images = [load_image(reference, folder) for reference in raw_row.images]
        row = Row(self.source, -1, raw_row.messages, images, self.distill)
        try:
            length = self.encoder.length(row)
        except PromptTooLong as error:
            raise BadRecord("prompt_too_long", str(error)) from error
        truncated = length > self.encoder.max_length
        return {"messages": row.messages, "images": images, "distill": self.distill, "truncated": truncated}


def check_messages(messages: Messages) -> None:
    """Check that user and assistant take turns after an optional system message, and that no message is empty.

    Raises:
        BadRecord: with the reason.
    """
    for message in messages:
        check_text(message["content"])
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    roles = [message["role"] for message in turns]
    expected = ["user", "assistant"] * (len(roles) // 2)
    if not roles or roles != expected:
        raise BadRecord("bad_turns", f"user and assistant must take turns and the assistant be last: {roles[:8]}")
    for number, message in enumerate(messages):
        if _INVISIBLE.fullmatch(message["content"]) and message["role"] == "assistant":
            raise BadRecord("empty_answer", f"no answer to {messages[number - 1]['content'][:120]!r}")
        if _INVISIBLE.fullmatch(message["content"]):
            raise BadRecord("empty_message", f"a message of the {message['role']} is empty")
    for message in messages:
        _check_bare(message)
    for message in messages:
        end = END_MARK.search(message["content"])
        if end and message["role"] == "assistant" and "<s>" not in message["content"]:  # a tag of HTML
            raise BadRecord(
                "end_of_turn",
                f"an answer ends with {end[1]}: take it out; the chat template writes the student's own end",
            )
    if not any(map(is_target, messages)):
        raise BadRecord("nothing_supervised", "no answer is a target of the loss")


def _check_bare(message: Message) -> None:
    """Check that a text was not rendered by another model's template."""
    mark = RENDERED.search(message["content"])
    if mark is None and message["role"] == "user":
        mark = ASKED_TO_ANSWER.search(message["content"])
    if mark:
        raise BadRecord(
            "rendered",
            f"{mark.group().strip()} is written around turns by another model's template: give the bare texts of "
            "question and answer, which the student's own template renders",
        )


def check_text(text: str) -> None:
    """Refuse half of a surrogate pair (from a cut JSON escape), which can be neither stored nor tokenized."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord("bad_text", f"half a character at {error.start}: {text[error.start :][:20]!a}") from error


def check_placeholders(messages: Messages, images: int, image_token: str) -> None:
    """Check that there are as many placeholders as images, all in prompts, and no image token of the student's own."""
    if image_token != PLACEHOLDER and any(image_token in m["content"] for m in messages):
        raise BadRecord("image_token", f"the text holds {image_token}, for which the student expects an image")
    if any(PLACEHOLDER in m["content"] for m in messages if m["role"] == "assistant"):
        raise BadRecord("image_in_answer", f"{PLACEHOLDER} stands in an answer")
    prompts = [m["content"] for m in messages if m["role"] != "assistant"]
    if medium := next(filter(None, map(OTHER_MEDIA.search, prompts)), None):
        raise BadRecord("missing_media", f"{medium.group()} stands in a prompt; video and audio are not trained on")
    for message in messages:
        if message["role"] == "user" and (named := PATH_IN_TEXT.search(message["content"])):
            raise BadRecord(
                "missing_image",
                f"{named.group():.80} names a picture in the text: write {PLACEHOLDER} there, and its path in 'images'",
            )
    _check_marks(prompts, images)
    placeholders = sum(m["content"].count(PLACEHOLDER) for m in messages)
    if placeholders > images:
        raise BadRecord("missing_image", f"{placeholders} placeholders {PLACEHOLDER}, {images} images")
    if placeholders < images:
        raise BadRecord("image_count", f"{images} images, {placeholders} placeholders {PLACEHOLDER}")


def _check_marks(prompts: list[str], images: int) -> None:
    """Check that no prompt has another model's image marks, which the student would read as text."""
    for prompt in prompts:
        if found := IMAGE_MARKS.search(prompt) or (MISSPELLED if images else NUMBERED).search(prompt):
            raise BadRecord(
                "image_token",
                f"{found.group()} in a prompt marks an image for another model: write {PLACEHOLDER} where it stands",
            )
