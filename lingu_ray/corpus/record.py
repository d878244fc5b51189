"""A record and its fields: each is read with its type checked, or the record is refused as a `BadRecord`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from numbers import Real
from typing import Any

from lingu_ray.corpus.row import Messages
from lingu_ray.literals import parsed

Record = dict[str, Any]
TAKE_ONE_OUT = (
    "differ, and nothing says which is meant: take one out of the records, or say how both are used, by `format: "
    "template`"
)


class BadRecord(Exception):
    """A record that makes no row: `reason` is what it is counted under, `detail` what is wrong in this one."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # both, so that it can be pickled
        self.reason = reason
        self.detail = detail


Numbered = tuple[int, Record | BadRecord]


@dataclass
class RawRow:
    """A conversation as its format gives it, not checked yet (`check.Checker`); `images` are references."""

    messages: Messages
    images: list[Any]


def is_null(value: Any) -> bool:
    """Whether a value is null, or NaN, which a table of pandas has in its place; or a text that stands for it.

    pandas prints the first three, and Self-Instruct and Alpaca write the others.
    """
    if isinstance(value, str):
        return value in ("nan", "NaT", "<NA>", "<noinput>", "<nooutput>")
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_empty(value: Any) -> bool:
    """Whether a value holds nothing: null, NaN, blank text, or a list or object of nothing but such.

    `datasets` fills fields that a record lacks with null, and pandas with NaN. Bytes, of which there are none, were a
    file.
    """
    if isinstance(value, str):
        return not value.strip() or is_null(value)
    if isinstance(value, dict):
        return all(map(is_empty, value.values()))
    if isinstance(value, list):
        return all(map(is_empty, value))
    return is_null(value)


def read_field(record: Record, name: str) -> Any:
    """The value under a name, null included."""
    if name not in record:
        raise BadRecord(
            "missing_field", f"no field {name!r}; there are: {', '.join(sorted(map(str, record))) or 'none'}"
        )
    return record[name]


def first_name(record: Record, *names: str) -> str:
    """The first of the names with a value in the record; if none has one, the first that is there at all."""
    return next((name for name in names if not is_empty(record.get(name))), _name_there(record, names))


def _name_there(record: Record, names: tuple[str, ...]) -> str:
    return next((name for name in names if name in record), names[0])


def first_list(record: Record, *names: str) -> str:
    """As `first_name`, of names of lists: the text of one that holds nothing, as `[]` in a table, is no value."""
    return first_name({name: parsed(record[name]) for name in names if name in record}, *names)


def only_name(record: Record, *names: str) -> str:
    """The one of the names with a value in the record; if none has one, the first that is there at all.

    Raises:
        BadRecord: two of them have values that differ.
    """
    found = [name for name in names if not is_empty(record.get(name))]
    for name in found[1:]:
        if record[name] != record[found[0]]:
            raise BadRecord("bad_turns", f"{found[0]!r} and {name!r} {TAKE_ONE_OUT}")
    return found[0] if found else _name_there(record, names)


def read_text(record: Record, name: str) -> str:
    """A field that must be text."""
    return _of_type(read_field(record, name), str, "text", repr(name))


def read_list(record: Record, name: str) -> list[Any]:
    """A field that must be a list; JSON text of one is read."""
    return _of_type(parsed(read_field(record, name)), list, "a list", repr(name))


def read_records(record: Record, name: str) -> list[Record]:
    """A field that must be a list of objects; also as JSON text, or as an object of lists (a `Sequence` column)."""
    return as_records(read_field(record, name), repr(name))


def as_records(value: Any, what: str) -> list[Record]:
    """A list of objects out of any of its spellings (see `read_records`)."""
    value = parsed(value)
    if isinstance(value, dict) and value and all(isinstance(column, list | None) for column in value.values()):
        value = _rows(value, what)
    return [as_dict(entry, f"an entry of {what}") for entry in _of_type(value, list, "a list", what)]


def as_dict(value: Any, what: str) -> Record:
    """A value that must be an object."""
    return _of_type(value, dict, "an object", what)


def as_index(value: Any, count: int, what: str, things: str) -> int:
    """A value that must be an index of `count` things: a whole number, not a truth value."""
    if not isinstance(value, int | float) or isinstance(value, bool) or value not in range(count):
        raise BadRecord("wrong_type", f"{what} must be an index of the {count} {things}, not {value!r:.80}")
    return int(value)


def to_text(value: Any, what: str) -> str:
    """The text of a value that a format prints: numbers, truth values and dates as Python prints them.

    So `3.0` stays "3.0" and true becomes "True".

    Raises:
        BadRecord: null, NaN or infinity, which are printed as words, or such a word; a list, an object or bytes.
    """
    if is_null(value) or (isinstance(value, Real | Decimal) and not math.isfinite(value)):
        raise BadRecord("missing_value", f"{what} is {'null' if value is None else value}")
    if isinstance(value, str):
        return value
    return str(_of_type(value, (Real, Decimal, date, time), "text or a number", what))


def _of_type(value: Any, types: type | tuple[type, ...], name: str, what: str) -> Any:
    if is_null(value):
        raise BadRecord("missing_value", f"{what} is {'null' if value is None else value}, and must be {name}")
    if not isinstance(value, types):
        raise BadRecord("wrong_type", f"{what} must be {name}, not {type(value).__name__}: {value!r:.80}")
    return value


def _rows(columns: dict[str, list[Any] | None], what: str) -> list[Record]:
    """The objects that an object of lists was made of."""
    filled = {key: column for key, column in columns.items() if column is not None}
    if len({len(column) for column in filled.values()}) > 1:
        raise BadRecord("wrong_type", f"the lists in {what} differ in length")
    return [dict(zip(filled, entry, strict=True)) for entry in zip(*filled.values(), strict=True)]
