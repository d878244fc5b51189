"""Turns: the entries of a conversation, in all spellings that are in use, become messages.

An entry is `{"role", "content"}` or `{"from", "value"}`, or a question with its answer: `{"user", "assistant"}`, or
XTuner's `{"input", "output"}`.
"""

from __future__ import annotations

import re
from typing import Any

from lingu_ray.corpus.beside import check_context
from lingu_ray.corpus.contents import check_none_unread, parts_of, read_content, read_images, resolve
from lingu_ray.corpus.record import (
    TAKE_ONE_OUT,
    BadRecord,
    RawRow,
    Record,
    as_records,
    first_name,
    is_empty,
    only_name,
    read_text,
)
from lingu_ray.corpus.record_keys import check_turn, is_supervised
from lingu_ray.corpus.row import PLACEHOLDER, Messages, is_target, placeholders
from lingu_ray.literals import parsed

ROLES = {
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "chatgpt", "bard", "bing", "model", "bot"),
    "system": ("system", "developer"),
}
SYSTEM_PROMPTS = ("system", "system_prompt", "system_message", "system_instruction", "sys_prompt")
_ROLE_OF = {speaker: role for role, speakers in ROLES.items() for speaker in speakers}
# by ms-swift, Shikra, ViP-LLaVA, Osprey, Ferret
_FILLED_FROM_BOXES = re.compile(r"<(ref-object|boxes|points|(bbox|region|mask|bbox_location)\d*)>")
NUMBERED = re.compile(r"<image[ _-]?\d+>", re.IGNORECASE)  # an image, or a reference to one, as MMMU has them
_BOXES = (
    *("objects", "bboxes", "bbox", "boxes", "regions", "masks", "annotation", "annotations"),
    *("target", "box_x1y1x2y2"),
)
_TOOL_ROLES = ("tool", "function", "observation", "function_call", "tool_call", "tool_response", "ipython")


def question_and_answer(user: str, assistant: str) -> Messages:
    """A conversation of one turn."""
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def conversation(record: Record, messages: Messages, inside: list[Any] | None = None) -> RawRow:
    """The raw row of a record's messages: after its system prompt and `history`, with its images, without loose ends.

    Args:
        inside: what `read_turns` gives for the placeholders in the messages; None: all images are the record's.

    Raises:
        BadRecord: the images do not fit the messages, or stand where they are not read; texts with marks to be filled;
            what belongs to the conversation stands beside it.
    """
    messages = _with_system(record, [*_read_history(record), *messages])
    check_context(record, messages)
    _check_filled(record, messages)
    images = resolve(inside or [], read_images(record))
    if not images:
        check_none_unread(record)
    return _without_loose_ends(place_images(messages, images))


def _check_filled(record: Record, messages: Messages) -> None:
    """Check that no mark in the texts waits for a box beside them: the student would learn to write the mark."""
    mark = _FILLED_FROM_BOXES.search(" ".join(message["content"] for message in messages))
    boxes = first_name(record, *_BOXES)
    if mark and not is_empty(record.get(boxes)):
        raise BadRecord(
            "missing_value", f"{mark.group()} is not filled from {boxes!r}: write what it stands for instead"
        )


def place_images(messages: Messages, images: list[Any]) -> RawRow:
    """A raw row; images that no message has a placeholder for are put before the first question.

    Raises:
        BadRecord: other marks say where they stand.
    """
    if images and not placeholders(messages):
        asked = " ".join(message["content"] for message in messages if message["role"] != "assistant")
        if mark := NUMBERED.search(asked):
            raise BadRecord("image_token", f"{mark.group()} may say where an image stands: write {PLACEHOLDER} there")
        for message in messages:
            if message["role"] == "user":
                message["content"] = PLACEHOLDER * len(images) + message["content"]
                break
    return RawRow(messages, images)


def read_turns(entries: list[Record]) -> tuple[Messages, list[Any]]:
    """The messages of a conversation's entries, and a reference for each placeholder in them (see `resolve`)."""
    messages: Messages = []
    inside: list[Any] = []
    for entry in entries:
        check_turn(entry)
        said, references = _read_entry(entry)
        messages += said
        inside += references
    for entry in entries:
        check_context(entry, messages)
    _check_names(entries)
    return messages, inside


def _read_history(record: Record) -> Messages:
    """Earlier turns under `history`: pairs of question and answer, or entries of a conversation."""
    history = parsed(record.get("history"))
    if is_empty(history):
        return []
    if isinstance(history, list) and all(_is_pair(entry) for entry in history):
        return [message for pair in history for message in question_and_answer(*pair)]
    messages, inside = read_turns(as_records(history, "'history'"))
    if any(reference is not None for reference in inside):
        raise BadRecord("image_count", "'history' names images of its own; put its turns into 'messages'")
    return messages


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(text, str) for text in entry)


def _read_entry(entry: Record) -> tuple[Messages, list[Any]]:
    messages: Messages
    user = only_name(entry, "user", "human", "input")
    assistant = only_name(entry, "assistant", "gpt", "bot", "output")
    if user in entry and assistant in entry and is_empty([entry.get("role"), entry.get("from")]):
        messages, inside = _read_pair(entry, user, assistant)
        name = assistant
    else:
        name = "value" if "value" in entry and is_empty(entry.get("content")) else "content"
        content, inside = read_content(entry, name)
        _check_spellings(entry)
        messages = [{"role": _role(read_text(entry, first_name(entry, "role", "from"))), "content": content}]
    if messages[-1]["role"] == "assistant" and not is_supervised(entry, parts_of(entry.get(name))):
        messages[-1]["supervised"] = False
    return messages, inside


def _check_spellings(entry: Record) -> None:
    """Check that a turn with both spellings, `role`, `content` and `from`, `value`, says one thing.

    A `from` that is no speaker, and a `value` that is no text, are metadata.
    """
    speakers = {_ROLE_OF.get(str(entry.get(name)).strip().lower()) for name in ("role", "from")} - {None}
    texts = {text for name in ("content", "value") if isinstance(text := entry.get(name), str) and not is_empty(text)}
    for names, said in (("'role' and 'from'", speakers), ("'content' and 'value'", texts)):
        if len(said) > 1:
            raise BadRecord("bad_turns", f"{names} of a turn {TAKE_ONE_OUT}")


def _read_pair(entry: Record, user: str, assistant: str) -> tuple[Messages, list[Any]]:
    """A question, to which the entry's images belong, with its answer, after the entry's own system prompt."""
    question, inside = read_content(entry, user)
    answer, in_answer = read_content({assistant: entry[assistant]}, assistant)
    return _with_system(entry, question_and_answer(question, answer)), [*inside, *in_answer]


def _role(speaker: str) -> str:
    name = speaker.strip().lower()
    if name in _TOOL_ROLES:
        raise BadRecord("tools", f"a turn of {speaker!r}: calls of tools are not trained on")
    if name not in _ROLE_OF:
        raise BadRecord("bad_turns", f"unknown speaker {speaker!r}; known: {', '.join(_ROLE_OF)}")
    return _ROLE_OF[name]


def _check_names(entries: list[Record]) -> None:
    """Two speakers of one role, told apart by `name` alone, would become one."""
    names: dict[str, set[str]] = {}
    for entry in entries:
        names.setdefault(str(entry.get("role")), set()).add(str(entry.get("name") or ""))
    if any(len(of_role) > 1 for of_role in names.values()):
        raise BadRecord("bad_turns", f"several speakers of one role, told apart by 'name': {names}")


def _with_system(record: Record, messages: Messages) -> Messages:
    """The messages, after the system prompt that stands beside them; an empty one is none, wherever it stands."""
    if messages and messages[0]["role"] == "system" and is_empty(messages[0]["content"]):
        messages = messages[1:]
    name = only_name(record, *SYSTEM_PROMPTS)
    if is_empty(record.get(name)):
        return messages
    prompt = read_text(record, name)
    if not messages or messages[0]["role"] != "system":
        return [{"role": "system", "content": prompt}, *messages]
    if messages[0]["content"] != prompt:
        raise BadRecord("bad_turns", f"{name!r} is another one than the conversation's own system message")
    return messages


def _without_loose_ends(row: RawRow) -> RawRow:
    """Without a greeting before the first question, as LLaVA does it, and without what follows the last target.

    Nothing would be learned from either. A greeting with an image stays, and has the row rejected.
    """
    messages = row.messages
    roles = [message["role"] for message in messages]
    start = roles[:1].count("system")
    if roles[start : start + 2] == ["assistant", "user"] and PLACEHOLDER not in messages[start]["content"]:
        messages = messages[:start] + messages[start + 1 :]
    targets = [index for index, message in enumerate(messages) if is_target(message)]
    kept = messages[: targets[-1] + 1] if targets else messages
    if placeholders(messages) != len(row.images):
        return RawRow(messages, row.images)  # the check says so
    return RawRow(kept, row.images[: placeholders(kept)])
