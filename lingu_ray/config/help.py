"""The lines of `--help` for each setting: default, meaning and accepted values, read from the sections themselves."""

import textwrap
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lingu_ray.config.base import PATTERNS, Schedule
from lingu_ray.config.layout import wrapped
from lingu_ray.config.strict_yaml import dump
from lingu_ray.config.tree import is_list, is_mapping, section_in

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def wants(annotation: Any, metadata: tuple[Any, ...] | list[Any] = ()) -> str:
    """What a value must be, in words: 'a whole number above 0', 'selective | all | none', 'text or null'."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return wants(inner, more)
    if annotation is Any:
        return "a value"
    arguments = get_args(annotation)
    if NoneType in arguments:
        return wants(arguments[0], metadata) + " or null"
    if Path in arguments:
        return "a path, s3://… or gs://…"
    if get_origin(annotation) is Literal:
        return " | ".join(arguments)
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(wants(one, metadata) for one in arguments)
    if is_mapping(annotation):
        return "a mapping of names to values"
    if is_list(annotation):
        return f"a list, each {wants(arguments[0])}"
    if get_origin(annotation) is tuple:
        return f"a list of {len(arguments)} numbers"
    if annotation is Schedule:
        return "a number, {start, end, shape, until}, or [[fraction, value], ...]"
    return _WORDS.get(annotation, "a section with its keys") + _bounds(metadata)


def _bounds(metadata: tuple[Any, ...] | list[Any]) -> str:
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    limits = [f"{words[name]} {getattr(m, name):g}" for m in metadata for name in words if hasattr(m, name)]
    multiples = [f"in multiples of {m.multiple_of:g}" for m in metadata if getattr(m, "multiple_of", None)]
    patterns = [PATTERNS[m.pattern] for m in metadata if getattr(m, "pattern", None)]
    return "".join(f" {text}" for text in [" and ".join(limits), *multiples, *patterns] if text)


def explain(setting: FieldInfo) -> str:
    """What a setting accepts, and what it means."""
    description = setting.description or " ".join((getattr(setting.annotation, "__doc__", None) or "").split())
    return f"{wants(setting.annotation, setting.metadata)} ({description})"


class Placed(NamedTuple):
    """A section, and the prefix of its settings' keys: `corpus.sources.NAME.` for an item of a list."""

    section: type[BaseModel]
    prefix: str


def sections(root: type[BaseModel], key: str = "", prefix: str = "") -> dict[str, Placed]:
    """Every section inside `root`, at any depth, by its dotted key; schedules count as values, not as sections."""
    found: dict[str, Placed] = {}
    for name, field in root.model_fields.items():
        section = section_in(field.annotation)
        if section is not None and section is not Schedule:
            item = "NAME." if is_list(field.annotation) or is_mapping(field.annotation) else ""
            place = Placed(section, f"{prefix}{name}.{item}")
            found |= {key + name: place} | sections(section, f"{key}{name}.", place.prefix)
    return found


def settings_in(section: type[BaseModel], prefix: str, width: int) -> dict[str, list[str]]:
    """The lines of each setting that is directly in a section, by the setting's name."""
    return {
        name: _setting_lines(prefix + name, field, width)
        for name, field in section.model_fields.items()
        if section_in(field.annotation) in (None, Schedule) or get_args(field.annotation)
    }


def setting_lines(section: type[BaseModel], prefix: str, width: int) -> list[str]:
    """The lines of all settings that are directly in a section."""
    return [line for lines in settings_in(section, prefix, width).values() for line in lines]


def section_lines(root: type[BaseModel], key: str, width: int) -> list[str]:
    """Summary and settings of the section at `key` and of all sections inside it."""
    lines: list[str] = []
    for name, (section, prefix) in sections(root).items():
        if name == key or name.startswith(key + "."):
            head = textwrap.wrap(f"{name}: {summary(section)}", width, subsequent_indent="  ")
            lines += [*([""] if lines else []), *head, *setting_lines(section, prefix, width)]
    return lines


def summary(section: type[BaseModel]) -> str:
    """What a section is, in one line."""
    return " ".join((section.__doc__ or "").split())


def _setting_lines(key: str, field: FieldInfo, width: int) -> list[str]:
    default = "(required)" if field.is_required() else f"= {dump(field.default, inline=True)}"
    head = f"  {key} {default}"
    column = min(46, width * 2 // 5)  # of a narrow screen the texts have the larger part
    text = f"{field.description} ({wants(field.annotation, field.metadata)})"
    if len(head) > column - 2:
        return [head, *wrapped(" " * column, text, width)]
    return wrapped(head.ljust(column), text, width)
