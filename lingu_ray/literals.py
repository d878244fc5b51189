"""Lists and objects that stand as text: JSON, and what Python prints, as tables hold them."""

from __future__ import annotations

import ast
import json
import warnings
from contextlib import suppress
from io import StringIO
from itertools import pairwise
from tokenize import NL, STRING, generate_tokens
from typing import Any

# Python 3.12 and later print what they think of escapes in a text of the data; "<unknown>" is what `ast` calls it
warnings.filterwarnings("ignore", module="<unknown>")

_NO_LITERAL = (ValueError, SyntaxError, RecursionError, MemoryError)


def from_json(text: str | bytes) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError, RecursionError: it is none, or too deep; or an object gives a key twice, one value of which would be
            lost.
    """
    return json.loads(text, object_pairs_hook=_without_twice)


def _without_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is given twice in one object")
    return found


def parsed(value: Any) -> Any:
    """What JSON text of a list or an object holds, or Python's own, as columns of CSV files have it; else the value."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    for read in (from_json, _as_printed):
        try:
            return read(value.strip())
        except _NO_LITERAL:
            continue
    return value


def is_text_of_list(value: Any) -> bool:
    """Whether a value is a text that `parsed` reads as a list."""
    return isinstance(value, str) and isinstance(parsed(value), list)


def read_list(text: str) -> list[Any]:
    """The list that a text is: in JSON, or as Python reads it, whoever wrote it.

    Raises:
        ValueError: it is none.
    """
    for read in (from_json, _as_written):
        with suppress(*_NO_LITERAL):
            if isinstance(found := read(text.strip()), list):
                return found
    raise ValueError(f"no text of a list: {text!r:.80}")


def _as_printed(text: str) -> Any:
    """A list or an object as Python prints it, and pandas writes it into a table.

    Raises:
        ValueError, SyntaxError, RecursionError, MemoryError: it is none, or too deep.
    """
    found = ast.literal_eval(text)  # nothing in it is run
    if not isinstance(found, list | dict) or repr(found) != text:
        raise ValueError("no list or object as Python prints it")
    return found


def _as_written(text: str) -> Any:
    """The constants that a text is in Python, however they are written.

    Raises:
        ValueError, SyntaxError, RecursionError, MemoryError: it is none, or too deep; or what numpy prints, as
            `['a' 'b']`, two texts that are one to Python.
    """
    found = ast.literal_eval(text)
    tokens = (token.type for token in generate_tokens(StringIO(text).readline) if token.type != NL)
    if any(one == other == STRING for one, other in pairwise(tokens)):
        raise ValueError("two texts without a comma between them")
    return found
