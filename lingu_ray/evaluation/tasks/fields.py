"""From a row to fields: a corpus format, templates over its columns, or the row as it is."""

from __future__ import annotations

from typing import Any

from lingu_ray.config import TaskConfig
from lingu_ray.config.task_templates import compile_template
from lingu_ray.corpus.check import check_messages
from lingu_ray.corpus.formats import FORMATS
from lingu_ray.corpus.record import RawRow, Record
from lingu_ray.corpus.row import PLACEHOLDER
from lingu_ray.evaluation.tasks.rows import source_of
from lingu_ray.evaluation.tasks.task_types import Fields, Malformed


def fields_of(config: TaskConfig, record: Record) -> list[Fields]:
    """The fields of a row's items: one, or as many as its corpus format makes of it.

    Raises:
        Malformed: a template does not fit the row.
        BadRecord: the row is not of the corpus format.
    """
    if config.format:
        return [_question(raw_row) for raw_row in FORMATS[config.format](record, source_of(config))]
    if config.fields:
        return [{key: _value(key, text, record) for key, text in config.fields.items()}]
    return [record]


def selected(where: str, record: Record) -> bool:
    """Whether a row is one of the task's.

    Raises:
        Malformed: `where` does not fit the row, or gives neither true nor false.
    """
    value = _value("where", where, record)
    if not isinstance(value, bool):
        raise Malformed(f"`where` must give true or false, found {value!r}")
    return value


def _value(key: str, text: str, record: Record) -> Any:
    try:
        return compile_template(text)(record)
    except Exception as error:  # an expression raises whatever the methods that it calls raise
        raise Malformed(f"`{key}`: {text!r} does not fit the row: {type(error).__name__}: {error}") from error


def _question(raw_row: RawRow) -> Fields:
    """The last turn: what the user asks, and what the assistant says. Images of earlier turns come before it."""
    check_messages(raw_row.messages)
    question, answer = (message["content"] for message in raw_row.messages[-2:])
    unmarked = len(raw_row.images) - question.count(PLACEHOLDER)
    return {"question": PLACEHOLDER * unmarked + question, "answer": answer, "image": raw_row.images}
