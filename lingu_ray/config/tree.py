"""The tree of settings by dotted key: the section or field that a key leads to, and its facts."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lingu_ray.config.base import Schedule
from lingu_ray.config.facts import Fact
from lingu_ray.config.run import Config
from lingu_ray.config.strict_yaml import Key


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section inside a field's type (itself, optional, or the item of a list), if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := section_in(arg))), None)


def is_list(annotation: Any) -> bool:
    """Whether a field holds any number of items."""
    return get_origin(annotation) is tuple and get_args(annotation)[-1] is Ellipsis


def is_mapping(annotation: Any) -> bool:
    """Whether a field holds values by names that the user chooses."""
    return get_origin(annotation) is dict


def section_at(key: Key, root: type[BaseModel] = Config) -> type[BaseModel] | None:
    """The section that `key` leads to; list positions and names in a mapping are skipped."""
    section: type[BaseModel] | None = root
    parts = iter(key)
    for part in parts:
        if section is None or isinstance(part, int):
            continue
        field = section.model_fields.get(part)
        section = section_in(field.annotation) if field else None
        if field and is_mapping(field.annotation):
            next(parts, None)
    return section


def field_at(key: Key, root: type[BaseModel] = Config) -> FieldInfo | None:
    """The field that `key` leads to; list positions and names in a mapping are skipped."""
    names = [part for part in key if isinstance(part, str)]
    section = section_at(tuple(names[:-1]), root)
    return section.model_fields.get(names[-1]) if section and names else None


def fields(root: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field inside `root` by its dotted key, at any depth; `*` stands for the items of a list.

    The parts of a schedule are left out, since it is one value.
    """
    for name, field in root.model_fields.items():
        key = prefix + name
        yield key, field
        section = section_in(field.annotation)
        if section is not None and section is not Schedule:
            yield from fields(section, f"{key}.*." if is_list(field.annotation) else f"{key}.")


@cache
def settings_with(fact: Fact) -> frozenset[str]:
    """Dotted keys of a run's settings that state a fact (`*`: any item of a list); it also holds inside of them."""
    return frozenset(key for key, field in fields() if fact in field.metadata)


def has(fact: Fact, key: str) -> bool:
    """Whether a fact is stated at a dotted key of a run's settings, or at a section around it."""
    return any(fnmatchcase(key, stated) or fnmatchcase(key, f"{stated}.*") for stated in settings_with(fact))
