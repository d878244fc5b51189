"""What stands beside a conversation and belongs to it, under names that no format reads.

It would be left out of the row, so the record is rejected, unless the prompts have it: those of many data sets were
made of such columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from lingu_ray.corpus.record import BadRecord, Record, is_empty
from lingu_ray.corpus.row import Messages
from lingu_ray.literals import parsed

_CONTEXT = re.compile(
    r"(?i:(\w+[_ ])?(context|ctx|passage|document|article|story|paragraph|background|excerpt|transcript)s?\d?|inputs?"
    r"|(chat|dialog|dialogue|conversation|message)[_ ]?history|(previous|earlier)[_ ]?(turn|message|conversation)s?"
    r"|system[_ ]?(prompt|message|instruction|content)?s?|meta[_ ]?instruction|preamble)"
)
_OF_A_QUESTION = re.compile(
    r"A|(?i:(answer[_ ]?)?(choice|option)s?([_ ]?[a-z0-9])?|opa"
    r"|(context|passage|document|hint|input|article|story|paragraph|premise|table|dialog|dialogue|background"
    r"|situation|body|hypothesis|schema|candidate|sentence|excerpt|question|query|instruction|alternative)s?\d?)"
)  # `A`, `option_a`, `choice1`, `opa`: one of the options, each in a column of its own
_TEXT_OF_A_QUESTION = re.compile(
    r"(?i:((source|full|long|supporting)[_ ])?"
    r"(text|content|abstract|snippet|chunk|report|scenario|evidence|support|fact)s?\d?)"
)
_ANSWERS = ("answer", "answers", "response", "responses", "completion", "output")
_LONG = 40  # letters of what is no name or number, where nothing stands between words


def check_context(record: Record, messages: Messages) -> None:
    """Check that no context stands beside a conversation, nor the answer to a question at its end.

    Args:
        record: all that stands beside it; or a turn, beside whose text it may stand.
        messages: the conversation.

    Raises:
        BadRecord: it does; of context, if it is prose that nothing before the last answer has.
    """
    ends_with_answer = bool(messages) and messages[-1]["role"] == "assistant"
    given = [message["content"] for message in (messages[:-1] if ends_with_answer else messages)]
    for name, text in _texts_under(_CONTEXT, record):
        if _is_prose(text) and _words(text) not in _words(" ".join(given)):
            raise BadRecord("bad_turns", f"{name!r} is in no prompt: write it into the question, or take it out")
    if messages and messages[-1]["role"] == "user":
        check_no_answer(record, "beside a question at the end: write it as the last turn")


def check_no_answer(record: Record, beside: str) -> None:
    """Check that no answer is left out of a row: beside its last question, or a caption, which may be the question.

    Raises:
        BadRecord: one is; `beside` says where, and the cure.
    """
    for name in _ANSWERS:
        if not is_empty(record.get(name)):
            raise BadRecord("bad_turns", f"{name!r} {beside}")


def check_question(record: Record, asked: Sequence[str]) -> None:
    """Check that nothing stands beside a question that belongs to it, such as its options.

    Raises:
        BadRecord: it does, and the texts that are asked do not have it; of a text, if it is prose, and not all of them.
    """
    said = _words(" ".join(asked))
    left_out = [name for name, text in _texts_under(_OF_A_QUESTION, record) if _words(text) not in said]
    for name, text in _texts_under(_TEXT_OF_A_QUESTION, record):
        is_whole = all(_words(part) in _words(text) for part in asked)  # as of Alpaca, with its template
        if _is_prose(text) and _words(text) not in said and not is_whole:
            left_out.append(name)
    if left_out:
        raise BadRecord("bad_turns", f"{left_out[0]!r} belongs to the question; say how, by `format: template`")


def _texts_under(names: re.Pattern[str], record: Record) -> Iterator[tuple[str, str]]:
    """Texts and numbers in the values under such names, each with its name."""
    for name, value in record.items():
        if names.fullmatch(str(name)):
            yield from ((name, text) for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    value = parsed(value)
    if isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
    elif isinstance(value, str | int | float) and not is_empty(value):
        yield str(value)


def _is_prose(text: str) -> bool:
    return len(text.split()) > 1 or len(text) > _LONG


def _words(text: str) -> str:
    """A text's words with a blank around each: whole words are found in it, however they are set."""
    return " ".join(["", *re.findall(r"\w+", text), ""])
