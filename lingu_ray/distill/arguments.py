"""Arguments of the library: numbers and choices, refused by name where they are none."""

from __future__ import annotations

import math
from typing import Any, get_args

from lingu_ray.errors import UserError


def as_number(value: Any) -> float:
    """The value as a float, also of numpy or a tensor of one element; NaN for what is no number, true and text too."""
    if isinstance(value, bool | str | bytes):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return math.nan


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raise UserError where the value is none of a Literal's."""
    if value not in get_args(choices):
        raise UserError(f"{name}={value!r}: choose one of {', '.join(get_args(choices))}")
