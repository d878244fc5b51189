"""True and false are no numbers: Python counts them as 1 and 0, and so does pydantic where a setting is a number."""

from __future__ import annotations

from typing import Any

from pydantic_core import CoreSchema, PydanticCustomError

_VALUES = ("default", "metadata", "serialization")
"""Parts of a schema in which no other schema is."""


def without_bools(schema: CoreSchema) -> CoreSchema:
    """A section's schema with every number in it, whatever it stands in, refusing true and false.

    A union of numbers and true or false takes both.
    """
    return _changed(schema)


def _changed(part: Any) -> Any:
    if isinstance(part, list | tuple):
        return type(part)(_changed(inner) for inner in part)
    if not isinstance(part, dict) or part.get("function", {}) == _CHECK:
        return part
    if part.get("type") in ("int", "float"):
        return {"type": "function-before", "function": _CHECK, "schema": part}
    values = _VALUES if isinstance(part.get("type"), str) else ()  # else by the names of fields
    return {key: inner if key in values else _changed(inner) for key, inner in part.items()}


def _refuse_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "Input should be a number, not true or false")
    return value


_CHECK = {"type": "no-info", "function": _refuse_bool}
