"""Formats: what a record looks like in the field, and how it becomes a conversation.

A format takes a record and its source's settings and yields raw rows (most yield one): messages with `PLACEHOLDER`
where an image stands, and references to the images (`contents`). What a format cannot understand it raises as
`BadRecord`; whether a raw row is a good row is decided in `check`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lingu_ray.config import SourceConfig
from lingu_ray.corpus.beside import check_no_answer, check_question
from lingu_ray.corpus.contents import IMAGE_KEYS, as_images, check_no_picture, read_images
from lingu_ray.corpus.fill import fill
from lingu_ray.corpus.record import (
    TAKE_ONE_OUT,
    BadRecord,
    RawRow,
    Record,
    as_dict,
    as_index,
    first_list,
    is_empty,
    only_name,
    read_field,
    read_list,
    read_records,
    read_text,
    to_text,
)
from lingu_ray.corpus.record_keys import check_record, check_verdicts
from lingu_ray.corpus.row import PLACEHOLDER, Messages
from lingu_ray.corpus.suffixes import ALL_PICTURES, IMAGE_SUFFIXES, MEDIA, last_suffix
from lingu_ray.corpus.turns import conversation, place_images, question_and_answer, read_turns
from lingu_ray.corpus.words import word_spans
from lingu_ray.literals import from_json, parsed

WHAT_IS_IT = "What is in the picture?"
CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue")  # names of a list of turns


def messages(record: Record, source: SourceConfig) -> Iterator[RawRow]:
    """`messages: [{role, content}]`, content text or parts; `images` unless they stand in the parts."""
    check_record(record, source)
    turns, inside = _turns(record, *CONVERSATIONS)
    yield conversation(record, turns, inside)


def llava(record: Record, source: SourceConfig) -> Iterator[RawRow]:
    """LLaVA: `conversations: [{from: human | gpt, value}]`, `image` a path or several, `<image>` in the text."""
    check_record(record, source)
    turns, inside = _turns(record, "conversations", *CONVERSATIONS)
    for turn in turns:
        turn["content"] = _PLACEHOLDERS_AROUND.sub(lambda found: found[0].replace("\n", ""), turn["content"])
    yield conversation(record, turns, inside)


_PLACEHOLDERS_AROUND = re.compile(rf"^(\n*{PLACEHOLDER})+\n*|(\n*{PLACEHOLDER})+\n*$")
"""Placeholders before or after a text: line breaks by them belong to LLaVA's template; those within a text do not."""


def _turns(record: Record, *names: str) -> tuple[Messages, list[Any]]:
    """The turns under the first of the names that has any; those under another one must be the same."""
    if not is_empty(record.get("history")):
        raise BadRecord("bad_turns", "'history' beside a conversation")
    name = first_list(record, *names)
    turns, inside = read_turns(read_records(record, name))
    for other in names:
        if other != name and (there := _turns_or_none(record, other)) is not None and there != turns:
            raise BadRecord("bad_turns", f"{name!r} and {other!r} {TAKE_ONE_OUT}")
    return turns, inside


def _turns_or_none(record: Record, name: str) -> Messages | None:
    """The turns under a name; None where there are none, or a value that is no conversation, such as a number."""
    try:
        return None if is_empty(parsed(record.get(name))) else read_turns(read_records(record, name))[0]
    except BadRecord:
        return None


def cauldron(record: Record, source: SourceConfig) -> Iterator[RawRow]:
    """The Cauldron, FineVision: `images`, `texts: [{user, assistant}]`, one conversation of several turns."""
    check_record(record, source)
    turns, inside = _turns(record, "texts")
    yield conversation(record, turns, inside)


def prompt_completion(record: Record, source: SourceConfig) -> Iterator[RawRow]:
    """`prompt` and `completion`, text or messages, and optionally `image` or `images`; or other names for the two."""
    check_record(record, source)
    prompt, completion = only_name(record, "prompt", "query"), only_name(record, "completion", "response")
    if is_empty(record.get(prompt)) and "question" in record:
        prompt, completion = "question", only_name(record, "answer", completion, "solution")
    asked, inside = _said(record, prompt, "user")
    # a prompt is complete, but for what is asked under another name
    beside = record if prompt != "prompt" else {name: record.get(name) for name in ("question", "instruction")}
    check_question(beside, [message["content"] for message in asked])
    answered, more = _said(record, completion, "assistant")
    for message in asked:
        if message["role"] == "assistant":  # of a prompt nothing is learned
            message["supervised"] = False
    yield conversation(record, [*asked, *answered], [*inside, *more])


def _said(record: Record, name: str, role: str) -> tuple[Messages, list[Any]]:
    """A field that is text of a role, or a list of messages, which may be written as JSON text."""
    value = read_field(record, name)
    if _are_turns([value] if isinstance(value, dict) else parsed(value)):
        return read_turns(read_records(record, name))
    if not (isinstance(value, str) or is_empty(value)):
        raise BadRecord(
            "wrong_type",
            f"{name!r} is neither text nor turns: {value!r:.60}; say by `format: template` what of it is meant, as "
            f"{{{name}}} or {{{name}[0]}}",
        )
    return read_turns([{"role": role, "content": read_text(record, name)}])


def _are_turns(value: Any) -> bool:
    """Whether what JSON text holds are turns, and no data that the text is about."""
    spellings = ({"role", "content"}, {"role", "tool_calls"}, {"from", "value"})
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and any(turn.keys() >= keys for keys in spellings) for turn in value)
    )


def instruction(record: Record, source: SourceConfig) -> Iterator[RawRow]:
    """Alpaca, Dolly: `instruction`, `output` or `response`, and if there: `input` or `context`, `system`, `history`."""
    check_record(record, source)
    given = only_name(record, "input", "context")
    asked = [read_text(record, "instruction")]
    if not is_empty(record.get(given)):
        asked.append(to_text(record[given], repr(given)))
    check_question(record, asked)
    question = "\n\n".join(text for text in asked if text.strip())
    answer = read_text(record, only_name(record, "output", "response"))
    yield conversation(record, question_and_answer(question, answer))


def text(record: Record, source: SourceConfig) -> Iterator[RawRow]:
    """`text`, cut into passages: `prompt_words` words as the prompt, then `answer_words` words as the answer.

    Before the prompt's words stands `prompt` of the source, over the record's other columns. Words: see `word_spans`.
    """
    check_no_picture(record, "say how it is asked about, by `format: template`")
    whole = read_text(record, "text")
    words = word_spans(whole)
    if len(words) <= source.prompt_words:
        raise BadRecord("too_short", f"{len(words)} words; prompt_words is {source.prompt_words}")
    beside = {name: value for name, value in record.items() if name != "text"}
    asked = f"{fill(source.prompt, beside)}\n" if source.prompt else ""
    for start in range(0, len(words) - source.prompt_words, source.prompt_words + source.answer_words):
        middle = start + source.prompt_words
        stop = min(middle + source.answer_words, len(words))
        given = whole[words[start][0] : words[middle - 1][1]]
        answer = whole[words[middle][0] : words[stop - 1][1]]
        yield RawRow(question_and_answer(f"{asked}{given}", answer), [])


def scienceqa(record: Record, source: SourceConfig) -> Iterator[RawRow]:
    """ScienceQA: `question`, `choices`, `answer` (index, letter), if there `hint`, `image`, `lecture`, `solution`."""
    check_record(record, source)
    choices = [to_text(choice, "one of 'choices'") for choice in read_list(record, "choices")]
    if len(choices) > len(string.ascii_uppercase):
        raise BadRecord("wrong_type", f"{len(choices)} choices, more than there are letters")
    answer = read_field(record, "answer")
    if isinstance(answer, str) and answer not in choices:  # a letter, as of MMLU, or a number out of a table
        answer = next((i for i in range(len(choices)) if answer in (string.ascii_uppercase[i], str(i))), answer)
    index = as_index(answer, len(choices), "'answer'", "choices")
    extra = {key: to_text(record[key], repr(key)) for key in SCIENCEQA_EXTRA if not is_empty(record.get(key))}
    context = f"Context: {extra.pop('hint')}\n" if "hint" in extra else ""
    question = read_text(record, "question")
    if any(map(is_empty, (question, *choices))):
        raise BadRecord("empty_message", "the question, or one of 'choices', is blank")
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(string.ascii_uppercase, choices, strict=False))
    asked = f"{context}Question: {question}\nChoices:\n{listed}"
    reasons = [extra[key].strip() for key in ("lecture", "solution") if key in extra]
    answer = "\n".join([f"The answer is {string.ascii_uppercase[index]}. {choices[index]}", *reasons])
    yield conversation(record, question_and_answer(asked, answer))


SCIENCEQA_EXTRA = ("hint", "lecture", "solution")


def image_folder(record: Record, source: SourceConfig) -> Iterator[RawRow]:
    """An image file; its folder's name, `-` and `_` as spaces, is `{label}` in `prompt` and `answer`."""
    question = fill(source.prompt or WHAT_IS_IT, record, may_be_a_name=True)
    answer = fill(source.answer or "{label}", record, may_be_blank=False)
    yield place_images(question_and_answer(question, answer), [record["image"]])


def webdataset(record: Record, source: SourceConfig) -> Iterator[RawRow]:
    """A sample of a tar: an image with `json` (a record of another format or with a `caption`) or `txt`, a caption.

    `question.txt` and `question.json` are its column `question`, and `1.txt` a caption. Also as `datasets` writes such
    samples to parquet: images as `{"bytes", "path"}`, `json` an object.
    """
    members = {name: value for name, value in record.items() if not is_empty(value)}
    fields = as_dict(_decoded(members.get("json", {})), 'json, such as {"messages": [turns]},')
    named = read_images(fields)
    fields = {name: value for name, value in fields.items() if name not in IMAGE_KEYS}
    for name in members:
        stem, _, suffix = name.rpartition(".")
        if suffix == "txt":
            column = "caption" if not stem or stem.isdigit() else stem
            fields[column] = _only(fields.get(column), _decoded(members[name], is_json=False).strip(), column)
        elif suffix == "json" and stem:
            fields[stem] = _only(fields.get(stem), _decoded(members[name]), stem)
    inner = next((one for one, keys in INNER_FORMATS if not any(is_empty(fields.get(key)) for key in keys)), _caption)
    images = _images_of_sample(members, named, may_be_text=inner in (messages, llava, cauldron))
    yield from inner(fields | {"images": images}, source)


def _only(other: Any, value: Any, column: str) -> Any:
    """The value of a sample's member, which is that of its JSON, or of another member, where there is one."""
    said = other.strip() if isinstance(other, str) else other
    if isinstance(said, type(value)) and not is_empty(said) and said != value:
        raise BadRecord("bad_turns", f"{column!r} of txt and that of json, or of a further member, {TAKE_ONE_OUT}")
    return value


def _images_of_sample(members: Record, named: list[Any], may_be_text: bool) -> list[Any]:
    """The images among a sample's members, those that its JSON names; members that are no data may be there as well."""
    plain = [name for name in sorted(members) if f".{name}" in IMAGE_SUFFIXES]
    unknown = [name for name in sorted(members) if name not in (*plain, *WEBDATASET_MEMBERS)]
    if media := [name for name in unknown if last_suffix(name) in MEDIA]:
        raise BadRecord("missing_media", f"video and audio are not trained on: {', '.join(media)}")
    by_name = [Path(name).name.partition(".")[2].lower() for name in named if isinstance(name, str)]
    if by_name and sorted(by_name) == [name for name in sorted(members) if last_suffix(name) in ALL_PICTURES]:
        return [members[name] for name in by_name]
    if not plain and (named or unknown or not may_be_text):
        listed = ", ".join(sorted(members)) or "nothing"
        raise BadRecord("missing_image", f"no image of a known kind in the sample; it has: {listed}")
    if further := [name for name in unknown if last_suffix(name) in ALL_PICTURES]:
        raise BadRecord(
            "image_count",
            f"{', '.join(further)} beside {', '.join(plain)}: which of them the text is about is not known; take the "
            "others out of the sample, or name all of them under `images` of its json",
        )
    if named and len(named) != len(plain):
        raise BadRecord("image_count", f"json names {len(named)} images, and the sample has {', '.join(plain)}")
    return [members[name] for name in plain]


def _caption(record: Record, source: SourceConfig) -> Iterator[RawRow]:
    check_record(record, source)
    check_no_answer(record, "beside a caption: call a question 'question' (`key.question.txt`)")
    question = fill(source.prompt or WHAT_IS_IT, record, may_be_a_name=True)
    yield conversation(record, question_and_answer(question, read_text(record, "caption").strip()))


WEBDATASET_MEMBERS = ("json", "txt", "cls", "__key__", "__url__")


def _decoded(value: Any, is_json: bool = True) -> Any:
    """The text of a member, or the object in it if it `is_json`; parquet files have it decoded."""
    try:
        text = value.decode("utf-8-sig") if isinstance(value, bytes) else value
        return from_json(text) if is_json and isinstance(text, str) else text
    except UnicodeDecodeError as error:
        raise BadRecord("wrong_type", f"not UTF-8 text: {error}") from error
    except ValueError as error:
        raise BadRecord("bad_json", str(error)) from error


def template(record: Record, source: SourceConfig) -> Iterator[RawRow]:
    """Any columns: `prompt` and `answer` are format strings over them, `image` names the image's column."""
    assert source.prompt and source.answer  # the configuration's check
    check_verdicts(record, source.prompt + source.answer)
    if not source.image:
        check_no_picture(record, "set `image` to its column")
    question = fill(source.prompt, record, may_be_a_name=source.image is not None)
    turn = question_and_answer(question, fill(source.answer, record, may_be_blank=False))
    if source.image and is_empty(read_field(record, source.image)):
        raise BadRecord("missing_image", f"column {source.image!r} holds no image")
    yield place_images(turn, as_images(record[source.image]) if source.image else [])


Format = Callable[[Record, SourceConfig], Iterator[RawRow]]

INNER_FORMATS: tuple[tuple[Format, tuple[str, ...]], ...] = (
    (messages, ("messages",)),
    (llava, ("conversations",)),
    (messages, ("conversation",)),
    (messages, ("dialogue",)),
    (cauldron, ("texts",)),
    (prompt_completion, ("completion",)),
    (prompt_completion, ("prompt", "response")),
    (scienceqa, ("question", "choices", "answer")),
    (prompt_completion, ("question",)),
    (prompt_completion, ("query", "response")),
    (instruction, ("instruction",)),
)
"""Formats of a record within a sample, by keys that tell them; without any of these it is a caption.

What asks is no caption, whatever its answer is called: the format says what is missing.
"""
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
