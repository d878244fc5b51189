"""How a task's `fields` and `where` read a row: by the name of a column, or by a Jinja template over the columns.

A template that is one single `{{expression}}` gives the expression's value unchanged (a list, a number); any other
gives text. Templates are sandboxed, a missing column is an error, and besides Jinja's own filters there is
`regex_replace(pattern, replacement)`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, Undefined, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

Row = dict[str, Any]


def _regex_replace(text: str, pattern: str, replacement: str) -> str:
    return re.sub(pattern, replacement, text)


_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
_ENVIRONMENT.filters["regex_replace"] = _regex_replace


@cache
def compile_template(text: str) -> Callable[[Row], Any]:
    """A function from a row to the value of `text`; it raises what the expression raises, `LookupError` for no column.

    Raises:
        ValueError: the template is malformed.
    """
    if "{{" not in text and "{%" not in text:
        return partial(_column, text)
    try:
        if _is_expression(_ENVIRONMENT.parse(text)):
            inside = text[2:-2].removeprefix("-").removesuffix("-")
            return partial(_value, _ENVIRONMENT.compile_expression(inside, undefined_to_none=False))
        return _ENVIRONMENT.from_string(text).render
    except TemplateSyntaxError as error:
        raise ValueError(f"the template {text!r} is malformed: {error}") from error


def _is_expression(template: nodes.Template) -> bool:
    """Whether the template is one single `{{expression}}`."""
    outputs = [part for node in template.body for part in (node.nodes if isinstance(node, nodes.Output) else [node])]
    return len(outputs) == 1 and isinstance(outputs[0], nodes.Expr) and not isinstance(outputs[0], nodes.TemplateData)


def _column(name: str, row: Row) -> Any:
    if name not in row:
        raise LookupError(f"no column {name!r}; there are: {', '.join(row)}")
    return row[name]


def _value(expression: Callable[[Row], Any], row: Row) -> Any:
    value = expression(row)
    if isinstance(value, Undefined):
        str(value)  # raises, with Jinja's own words
    return list(value) if isinstance(value, Iterator) else value
