"""Formats: what a record looks like in the field, and how it becomes a conversation.

A format takes a record and its source's settings and yields raw rows (most yield one): messages with `PLACEHOLDER`
where an image stands, and references to the images (bytes, a path, or a Hugging Face image `{"bytes", "path"}`).
What a format cannot understand it raises as `BadRecord`; whether a raw row is a good row is decided in `check`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lingu_ray.config import SourceConfig
from lingu_ray.corpus.row import PLACEHOLDER, Messages

Record = dict[str, Any]
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
WHAT_IS_IT = "What is in the picture?"


class BadRecord(Exception):
    """A record that makes no row: `reason` is what it is counted under, `detail` what is wrong in this one."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # both, so that it can be pickled
        self.reason = reason
        self.detail = detail


@dataclass
class RawRow:
    """A conversation as its format gives it, not checked yet (`check.Checker`); `images` are references."""

    messages: Messages
    images: list[Any]


def _field(record: Record, name: str) -> Any:
    if name not in record:
        raise BadRecord("missing_field", f"no field {name!r}; there are: {', '.join(sorted(record)) or 'none'}")
    return record[name]


def _text(record: Record, name: str) -> str:
    value = _field(record, name)
    if not isinstance(value, str):
        raise BadRecord("wrong_type", f"{name!r} must be text, not {type(value).__name__}: {value!r:.80}")
    return value


def _list(record: Record, name: str) -> list[Any]:
    value = _field(record, name)
    if not isinstance(value, list):
        raise BadRecord("wrong_type", f"{name!r} must be a list, not {type(value).__name__}: {value!r:.80}")
    return value


def _dict(value: Any, what: str) -> Record:
    if not isinstance(value, dict):
        raise BadRecord("wrong_type", f"{what} must be an object, not {type(value).__name__}: {value!r:.80}")
    return value


def _images(record: Record) -> list[Any]:
    """References under `images` or `image`, a list or a single one; there may be none."""
    value = record.get("images") or record.get("image") or []
    return value if isinstance(value, list) else [value]


def _said(user: str, assistant: str) -> Messages:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _raw_row(messages: Messages, images: list[Any]) -> RawRow:
    """A raw row; images that no message has a placeholder for are put before the first question."""
    if images and not any(PLACEHOLDER in m["content"] for m in messages):
        for message in messages:
            if message["role"] == "user":
                message["content"] = PLACEHOLDER * len(images) + message["content"]
                break
    return RawRow(messages, images)


def messages(record: Record, source: SourceConfig) -> Iterator[RawRow]:
    """`messages: [{role, content}]`, content text or Hugging Face parts; `images` unless they stand in the parts."""
    turns: Messages = []
    inside: list[Any] = []
    for value in _list(record, "messages"):
        message = _dict(value, "a message")
        content = _field(message, "content")
        if isinstance(content, list):
            content, found = _join_parts(content)
            inside += found
        turns.append({"role": _text(message, "role"), "content": _text({"content": content}, "content")})
    yield _raw_row(turns, inside or _images(record))


def _join_parts(parts: list[Any]) -> tuple[str, list[Any]]:
    text = ""
    images = []
    for value in parts:
        part = _dict(value, "a part of a message")
        kind = part.get("type")
        if kind == "text":
            text += _text(part, "text")
        elif kind == "image":
            text += PLACEHOLDER
            images += [part[key] for key in ("image", "path", "bytes") if part.get(key)][:1]
        else:
            raise BadRecord("wrong_type", f"a part of a message must be text or image, not {kind!r}")
    return text, images


def cauldron(record: Record, source: SourceConfig) -> Iterator[RawRow]:
    """The Cauldron, FineVision: `images`, `texts: [{user, assistant}]`, one conversation of several turns."""
    turns: Messages = []
    for value in _list(record, "texts"):
        turn = _dict(value, "a text")
        turns += _said(_text(turn, "user"), _text(turn, "assistant"))
    yield _raw_row(turns, _images(record))


LLAVA_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def llava(record: Record, source: SourceConfig) -> Iterator[RawRow]:
    """LLaVA: `conversations: [{from: human | gpt, value}]`, `image` a path or several, `<image>` in the text."""
    turns: Messages = []
    for value in _list(record, "conversations"):
        turn = _dict(value, "a turn")
        speaker = _text(turn, "from")
        if speaker not in LLAVA_ROLES:
            raise BadRecord("bad_turns", f"unknown speaker {speaker!r}; known: {', '.join(LLAVA_ROLES)}")
        # The line break that LLaVA writes around a placeholder belongs to its template, not to the text.
        text = re.sub(rf"\n*{PLACEHOLDER}\n*", PLACEHOLDER, _text(turn, "value"))
        turns.append({"role": LLAVA_ROLES[speaker], "content": text})
    yield _raw_row(turns, _images(record))


def prompt_completion(record: Record, source: SourceConfig) -> Iterator[RawRow]:
    """`prompt`, `completion`, and optionally `image` or `images`."""
    yield _raw_row(_said(_text(record, "prompt"), _text(record, "completion")), _images(record))


def instruction(record: Record, source: SourceConfig) -> Iterator[RawRow]:
    """Alpaca: `instruction`, `input` (may be empty), `output`."""
    given = record.get("input") or ""
    question = _text(record, "instruction") + (f"\n\n{given}" if given else "")
    yield _raw_row(_said(question, _text(record, "output")), _images(record))


def text(record: Record, source: SourceConfig) -> Iterator[RawRow]:
    """`text`, cut into passages: `prompt_words` words as the prompt, then `answer_words` words as the answer."""
    whole = _text(record, "text")
    words = [match.span() for match in re.finditer(r"\S+", whole)]
    if len(words) <= source.prompt_words:
        raise BadRecord("too_short", f"{len(words)} words; prompt_words is {source.prompt_words}")
    for start in range(0, len(words) - source.prompt_words, source.prompt_words + source.answer_words):
        middle = start + source.prompt_words
        stop = min(middle + source.answer_words, len(words))
        given = whole[words[start][0] : words[middle - 1][1]]
        answer = whole[words[middle][0] : words[stop - 1][1]]
        question = f"{source.prompt}\n{given}" if source.prompt else given
        yield RawRow(_said(question, answer), [])


def scienceqa(record: Record, source: SourceConfig) -> Iterator[RawRow]:
    """ScienceQA: `question`, `choices`, `answer` (index), and if there: `hint`, `image`, `lecture`, `solution`."""
    choices = _list(record, "choices")
    index = _field(record, "answer")
    if not isinstance(index, int) or not 0 <= index < len(choices):
        raise BadRecord("wrong_type", f"'answer' must be an index of the {len(choices)} choices, not {index!r}")
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    context = f"Context: {record['hint']}\n" if record.get("hint") else ""
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True))
    question = f"{context}Question: {_text(record, 'question')}\nChoices:\n{listed}"
    reasons = [record[key].strip() for key in ("lecture", "solution") if record.get(key)]
    answer = "\n".join([f"The answer is {letters[index]}. {choices[index]}", *reasons])
    yield _raw_row(_said(question, answer), _images(record))


def image_folder(record: Record, source: SourceConfig) -> Iterator[RawRow]:
    """An image file; its folder's name, `-` and `_` as spaces, is `{label}` in `prompt` and `answer`."""
    question = _fill(source.prompt or WHAT_IS_IT, record)
    yield _raw_row(_said(question, _fill(source.answer or "{label}", record)), [record["image"]])


def webdataset(record: Record, source: SourceConfig) -> Iterator[RawRow]:
    """A sample of a tar: an image with `json` (a record of another format or with a `caption`) or `txt`, a caption."""
    images = [record[suffix[1:]] for suffix in sorted(IMAGE_SUFFIXES) if suffix[1:] in record]
    fields: Record = {"images": images}
    if "json" in record:
        try:
            fields |= {
                k: v for k, v in _dict(json.loads(record["json"]), "json").items() if k not in ("image", "images")
            }
        except ValueError as error:
            raise BadRecord("bad_json", str(error)) from error
    if "txt" in record:
        fields["caption"] = _decode(record["txt"])
    for name, inner in INNER_FORMATS.items():
        if name in fields:
            yield from inner(fields, source)
            return
    yield _raw_row(_said(source.prompt or WHAT_IS_IT, _text(fields, "caption")), images)


def _decode(encoded: bytes) -> str:
    try:
        return encoded.decode().strip()
    except UnicodeDecodeError as error:
        raise BadRecord("wrong_type", f"not UTF-8 text: {error}") from error


def template(record: Record, source: SourceConfig) -> Iterator[RawRow]:
    """Any columns: `prompt` and `answer` are format strings over them, `image` names the image's column."""
    assert source.prompt and source.answer  # the configuration's check
    reference = _field(record, source.image) if source.image else []
    images = reference if isinstance(reference, list) else [reference]
    yield _raw_row(_said(_fill(source.prompt, record), _fill(source.answer, record)), images)


def _fill(pattern: str, record: Record) -> str:
    try:
        return pattern.format_map(record)
    except KeyError as error:
        raise BadRecord(
            "missing_field", f"no column {error} for {pattern!r}; there are: {', '.join(record)}"
        ) from error
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise BadRecord("wrong_type", f"{pattern!r} does not fit the record: {error}") from error


Format = Callable[[Record, SourceConfig], Iterator[RawRow]]

INNER_FORMATS: dict[str, Format] = {
    "messages": messages,
    "conversations": llava,
    "texts": cauldron,
    "completion": prompt_completion,
}
FORMATS: dict[str, Format] = {
    "messages": messages,
    "cauldron": cauldron,
    "finevision": cauldron,
    "llava": llava,
    "prompt_completion": prompt_completion,
    "instruction": instruction,
    "text": text,
    "scienceqa": scienceqa,
    "image_folder": image_folder,
    "webdataset": webdataset,
    "template": template,
}
