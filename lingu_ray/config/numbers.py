"""Numbers in settings: true and false are refused, so is what needs more than 64 bits; shares are exact fractions."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from pydantic_core import PydanticCustomError

_VALUES = ("default", "metadata", "serialization")
"""Parts of a schema that hold no other schema."""


def share_of(share: float, whole: int) -> Fraction:
    """A share of so many steps or rows, exactly: 0.07 of 100 is 7, while the product of floats is slightly above."""
    return Fraction(str(share)) * whole


def checked_numbers(part: Any) -> Any:
    """A section's core schema, or a part of it, changed so that its numbers refuse true, false, and 2^63 and above.

    A union of a number and a boolean still takes both.
    """
    if isinstance(part, list | tuple):
        return type(part)(checked_numbers(inner) for inner in part)
    if not isinstance(part, dict) or part.get("function", {}) == _CHECK:
        return part
    if part.get("type") in ("int", "float"):
        return {"type": "function-before", "function": _CHECK, "schema": part}
    values = _VALUES if isinstance(part.get("type"), str) else ()  # else by the names of fields
    return {key: inner if key in values else checked_numbers(inner) for key, inner in part.items()}


def _check(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "Input should be a number, not true or false")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise PydanticCustomError("number_size", "Input should be below 2^63")
    return value


_CHECK = {"type": "no-info", "function": _check}
