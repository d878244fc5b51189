"""Columns and Jinja templates, by which a task's `fields` and `where` read a row.

A template that is a single `{{expression}}` gives the expression's value unchanged (a list, a number). Any other
template gives text, and refuses to print null, NaN, a list or an object. Templates are sandboxed, and a missing column
is an error. Besides Jinja's filters there are `regex_replace(pattern, replacement)`, and `as_list` for a list that a
table stores as text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import date, time
from decimal import Decimal
from functools import cache, partial, wraps
from numbers import Real
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, Undefined, nodes, pass_eval_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.filters import do_join, make_attrgetter
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lingu_ray.literals import is_text_of_list, read_list

Row = dict[str, Any]

_TEXT_FILTERS = ("capitalize", "center", "indent", "lower", "replace", "string", "striptags", "title", "trim", "upper")


def _regex_replace(text: str, pattern: str, replacement: str) -> str:
    return re.sub(pattern, replacement, text)


def _printed(value: Any) -> Any:
    """The value unchanged, if a template may print it.

    Raises:
        ValueError: it may not: Python's own notation for null, NaN, a list or an object would become part of an item.
    """
    if value is None or (isinstance(value, Real | Decimal) and not math.isfinite(value)):
        shown = "null" if value is None else value
        raise ValueError(f"{shown} would be part of a text: leave it out by {{% if %}}, or such rows by `where`")
    if not isinstance(value, str | Real | Decimal | date | time | Undefined):
        kind, cure = type(value).__name__, "choose from it or join it, as {{names[0]}} or {{names | join(', ')}}"
        raise ValueError(f"a {kind} would be part of a text as Python prints it: {cure}; found {value!r:.80}")
    return value


class _TextOfList(str):
    """The text of a list. An expression that treats it as a list would get letters; it raises ValueError."""

    def _refuse(self, *_: Any) -> Any:
        raise ValueError(f"the text of a list is no list: read it, as {{{{names | as_list}}}}; found {self!r:.80}")

    __getitem__ = __iter__ = __contains__ = __len__ = index = find = count = _refuse

    def __bool__(self) -> bool:
        return True


def _as_list(value: Any) -> list[Any]:
    """A list, or the list that a text in JSON or Python's notation stands for."""
    found = read_list(str(value)) if isinstance(value, str) else value
    if not isinstance(found, list):
        raise ValueError(f"no list, nor the text of one: {found!r:.80}")
    return found


class _Generator(CodeGenerator):
    """Applies `finalize` also to the parts that `~` joins; Jinja applies it only to what a template prints."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("str_join((")
        for part in node.nodes:
            self.write("environment.finalize(")
            self.visit(part, frame)
            self.write("), ")
        self.write("))")


_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_printed)
_ENVIRONMENT.code_generator_class = _Generator
_ENVIRONMENT.filters |= {"regex_replace": _regex_replace, "as_list": _as_list}


def _checked_filter(name: str) -> Callable[..., Any]:
    """Jinja's filter of that name, which would print any value, behind a check of its value by `_printed`."""
    unchecked: Callable[..., Any] = _ENVIRONMENT.filters[name]
    place = int(hasattr(unchecked, "jinja_pass_arg"))  # of the value: some filters get Jinja's context first

    @wraps(unchecked)
    def checked(*arguments: Any, **named: Any) -> Any:
        _printed(arguments[place])
        return unchecked(*arguments, **named)

    return checked


@pass_eval_context
def _join(context: nodes.EvalContext, values: Iterable[Any], between: str = "", attribute: str | None = None) -> str:
    """Jinja's `join`, behind a check of each part by `_printed`."""
    parts = values if attribute is None else map(make_attrgetter(context.environment, attribute), values)
    return do_join(context, [_printed(part) for part in parts], between)


_ENVIRONMENT.filters |= {name: _checked_filter(name) for name in _TEXT_FILTERS} | {"join": _join}


@cache
def compile_template(text: str) -> Callable[[Row], Any]:
    """A function that gives the value of `text`, a column's name or a template, for a row.

    The function raises what the expression raises, `LookupError` for a missing column, and `ValueError` as `_printed`.

    Raises:
        ValueError: the template is malformed.
    """
    if "{{" not in text and "{%" not in text:
        return partial(_column, text)
    try:
        template = _ENVIRONMENT.parse(text)
        names = find_undeclared_variables(template)
        if _is_expression(template):
            inside = text[2:-2].removeprefix("-").removesuffix("-")
            return partial(_value, _ENVIRONMENT.compile_expression(inside, undefined_to_none=False), names)
        render = _ENVIRONMENT.from_string(text).render
        return lambda row: render(_with_marked_lists(row, names))
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


def _value(expression: Callable[[Row], Any], names: set[str], row: Row) -> Any:
    value = expression(_with_marked_lists(row, names))
    if isinstance(value, Undefined):
        str(value)  # raises, with Jinja's own words
    return list(map(_plain, value)) if isinstance(value, Iterator | list) else _plain(value)


def _with_marked_lists(row: Row, names: set[str]) -> Row:
    """The row, with the texts of lists in the columns `names` as `_TextOfList`."""
    return row | {name: _TextOfList(row[name]) for name in names if is_text_of_list(row.get(name))}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, _TextOfList) else value
