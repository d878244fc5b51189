"""Format strings over a record's columns: prompts and answers of a source."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from lingu_ray.corpus.record import BadRecord, Record, to_text
from lingu_ray.literals import parsed


class _Columns(string.Formatter):
    """Fills a format string with a record's columns; raises `BadRecord` for what has no text (`to_text`).

    An entry, `{answers[0]}`, is one of the list that a text is (`parsed`), and no letter of it. The text of a list of
    texts, as a table has answers, is refused as a list is; with a conversion, `{answers!s}`, it is taken as it is.

    Counts the columns with a text, and keeps the names of those that are blank.
    """

    def __init__(self) -> None:
        self.filled = 0
        self.blank: list[str] = []

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        name, entry, _ = field_name.partition("[")
        column = parsed(kwargs.get(name)) if entry else None
        if isinstance(column, str) and column.startswith(("[", "{")):
            raise BadRecord(
                "wrong_type", f"{{{field_name}}}: {name!r} is no list or object that can be read: {column:.80}"
            )
        value, first = super().get_field(field_name, args, {**kwargs, name: column} if entry else kwargs)
        if to_text(value, f"{{{field_name}}}").strip():
            self.filled += 1
        else:
            self.blank.append(field_name)
        return value, first

    def convert_field(self, value: Any, conversion: str | None) -> Any:
        if conversion is None and isinstance(value, str) and _LIST_OF_TEXTS.fullmatch(value):
            raise BadRecord(
                "wrong_type",
                f"a column is the text of a list, {value:.60}: take an entry, as {{answers[0]}}, or the text as it is, "
                "as {answers!s}",
            )
        return super().convert_field(value, conversion)


_LIST_OF_TEXTS = re.compile(r"""\[\s*['"].*['"]\s*\]""", re.DOTALL)  # in JSON, or as Python or numpy prints it


def fill(pattern: str, record: Record, may_be_a_name: bool = False, may_be_blank: bool = True) -> str:
    """A pattern with a record's columns.

    Args:
        pattern: a format string.
        record: its columns.
        may_be_a_name: all of the pattern may be a column's name, as the question `caption` about an image.
        may_be_blank: whether some columns may be, as an instruction's input; else, and where all are, they are missing,
            for tables have blanks for null.

    Raises:
        BadRecord: the record has no such column, or what the pattern names has no text.
    """
    listed = ", ".join(record) or "none"
    _check_braces(pattern, record, may_be_a_name)
    columns = _Columns()
    try:
        text = columns.vformat(pattern, (), record)
    except KeyError as error:
        raise BadRecord("missing_field", f"no column {error} for {pattern!r}; there are: {listed}") from error
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise BadRecord("wrong_type", f"{pattern!r} does not fit the record: {error}") from error
    if columns.blank and not (may_be_blank and columns.filled):
        raise BadRecord("missing_value", f"{{{columns.blank[0]}}} of {pattern!r} is blank")
    return text


_WITHOUT_A_FIELD = re.compile(r"(?:[^{}]|\{\{|\}\})*")
_IN_DOUBLE_BRACES = re.compile(r"\{\{\s*(\w+)\s*\}\}")


def _check_braces(pattern: str, record: Record, may_be_a_name: bool) -> None:
    """Refuse a pattern that fills in nothing and names a column: `question`, or `{{question}}` as a task has it."""
    if not _WITHOUT_A_FIELD.fullmatch(pattern):
        return
    names = _IN_DOUBLE_BRACES.findall(pattern) + ([] if may_be_a_name else [pattern])
    if name := next((name for name in names if name in record), None):
        raise BadRecord("wrong_type", f"{pattern!r} is the same text for all rows: a column is written {{{name}}}")
