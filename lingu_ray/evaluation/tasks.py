"""Evaluation tasks: JSONL items, checked before any model is loaded.

Forms, one JSON object a line, by `type` of the task:

- `multiple_choice`: `{"query", "choices", "gold"}` (which choice follows the query) or
  `{"context_options", "continuation", "gold"}` (which context the continuation follows);
- `perplexity`: `{"text"}`, or `{"context", "continuation"}` to score the continuation alone;
- `exact_match`: `{"question", "answer"}` with `"image"`, a path or a list of paths from the file's folder. `answer` may
  be a list of accepted answers. `<image>` in the question marks where an image stands; without it they come first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingu_ray.config import TaskConfig
from lingu_ray.corpus.images import decode_image
from lingu_ray.corpus.row import PLACEHOLDER
from lingu_ray.errors import UserError


@dataclass(frozen=True)
class Choice:
    """One multiple-choice item: `pairs` are the (context, continuation) of each option, `gold` the right one."""

    line: int
    pairs: tuple[tuple[str, str], ...]
    option_bytes: tuple[int, ...]
    gold: int


@dataclass(frozen=True)
class Passage:
    """One text whose likelihood is measured, after `context` (empty: from its first token)."""

    line: int
    context: str
    text: str


@dataclass(frozen=True)
class Question:
    """One question about images, with the answers that count as right."""

    line: int
    question: str
    answers: tuple[str, ...]
    images: tuple[Path, ...]


Item = Choice | Passage | Question


@dataclass(frozen=True)
class Task:
    """A task's settings and its items (never none)."""

    config: TaskConfig
    items: tuple[Item, ...]


class _Malformed(Exception):
    """What is wrong with one record; `load_task` adds the file and line."""


def load_task(config: TaskConfig) -> Task:
    """Read and check all items of a task.

    Raises:
        UserError: the file is missing, or holds no items or fewer than `limit`; an item is malformed (file and line).
    """
    path = Path(config.path)
    if not path.is_file():
        raise UserError(f"evaluation.tasks: {config.name}: no file {path}; set its `path` to a JSONL file of items")
    parse = _PARSERS[config.type]
    items: list[Item] = []
    for line, text in _lines(path):
        if config.limit is not None and len(items) == config.limit:
            break
        try:
            items.append(parse(_record(text), line, config, path.parent))
        except _Malformed as error:
            raise UserError(f"evaluation.tasks: {config.name}: {path}, line {line}: {error}") from None
    if not items:
        raise UserError(f"evaluation.tasks: {config.name}: {path} holds no items")
    if config.limit is not None and len(items) < config.limit:
        raise UserError(
            f"evaluation.tasks: {config.name}: limit is {config.limit}, but {path} holds {len(items)} items; "
            "lower the limit or leave it out"
        )
    return Task(config, tuple(items))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            if text.strip():
                yield number, text


def _record(text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise _Malformed(f"not JSON ({error})") from None
    if not isinstance(record, dict):
        raise _Malformed("not a JSON object")
    return record


def _text(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise _Malformed(f"`{key}` must be a string that is not empty, found {value!r}")
    return value


def _texts(record: dict[str, Any], key: str) -> tuple[str, ...]:
    """A string, or a list of strings, as a tuple; none of them empty."""
    value = record.get(key)
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values or not all(isinstance(v, str) and v.strip() for v in values):
        raise _Malformed(f"`{key}` must be text or a list of texts, none empty, found {value!r}")
    return tuple(values)


def _choice(record: dict[str, Any], line: int, config: TaskConfig, folder: Path) -> Choice:
    if "choices" in record:
        query, options = _text(record, "query"), _texts(record, "choices")
        pairs = tuple((query, config.delimiter + option) for option in options)
        option_bytes = tuple(len(option.encode()) for option in options)
    elif "context_options" in record:
        options, continuation = _texts(record, "context_options"), _text(record, "continuation")
        pairs = tuple((option, config.delimiter + continuation) for option in options)
        option_bytes = (len(continuation.encode()),) * len(options)
    else:
        raise _Malformed("neither `query, choices, gold` nor `context_options, continuation, gold`")
    gold = record.get("gold")
    if len(pairs) < 2 or type(gold) is not int or not 0 <= gold < len(pairs):
        raise _Malformed(f"`gold` must be the index of one of two or more options, found {gold!r} of {len(pairs)}")
    return Choice(line, pairs, option_bytes, gold)


def _passage(record: dict[str, Any], line: int, config: TaskConfig, folder: Path) -> Passage:
    if "text" in record:
        return Passage(line, "", _text(record, "text"))
    return Passage(line, _text(record, "context"), config.delimiter + _text(record, "continuation"))


def _question(record: dict[str, Any], line: int, config: TaskConfig, folder: Path) -> Question:
    question, images = _text(record, "question"), tuple(folder / name for name in _texts(record, "image"))
    marks = question.count(PLACEHOLDER)
    if marks not in (0, len(images)):
        raise _Malformed(f"`question` has {marks} {PLACEHOLDER} for {len(images)} images; mark all of them or none")
    for image in images:
        try:
            decode_image(image.read_bytes())
        # Pillow's decoders raise OSError, SyntaxError, ValueError and others on damaged files.
        except Exception as error:
            raise _Malformed(f"`image` {image} cannot be read: {error}") from None
    return Question(line, question, _texts(record, "answer"), images)


_PARSERS: dict[str, Callable[[dict[str, Any], int, TaskConfig, Path], Item]] = {
    "multiple_choice": _choice,
    "perplexity": _passage,
    "exact_match": _question,
}
