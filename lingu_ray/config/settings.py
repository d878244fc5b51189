"""Settings before validation: a tree from YAML, changed by dotted `key=value` overrides, then validated.

Every mistake becomes one line: the key, its value, what is accepted, and the line of the file or the override.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lingu_ray.config import strict_yaml
from lingu_ray.config.base import RECORDED, Schedule
from lingu_ray.config.differences import short
from lingu_ray.config.help import explain, wants
from lingu_ray.config.renamed import ELSEWHERE, new_name
from lingu_ray.config.strict_yaml import Key
from lingu_ray.config.tree import field_at, is_list, is_mapping, section_at
from lingu_ray.errors import UserError
from lingu_ray.paths import not_found
from lingu_ray.storage import local_copy, redacted

log = logging.getLogger(__name__)

OVERRIDE = re.compile(r"([A-Za-z_][\w.-]*)=(.*)", re.DOTALL)

_DOTTED = re.compile(r"\b[a-z_]+(?:\.[a-z_0-9]+)+\b")
"""A dotted key in the text of a message."""

T = TypeVar("T", bound=BaseModel)

_HINTS = {
    "string_type": "; quote text that YAML reads otherwise",
    "finite_number": "; it must be finite",
    "number_size": "; it must be below 2^63",
}
"""The cure for a value of the wrong kind, by pydantic's type of error."""


def parse(text: str, origin: str, schema: type[T]) -> Settings[T]:
    """The settings of a YAML text; `origin` names it in errors."""
    tree, lines = strict_yaml.load(text, origin)
    if tree is None:
        raise UserError(f"{origin}: the file is empty; a configuration is a mapping of keys")
    if not isinstance(tree, dict):
        raise UserError(f"{origin}: a configuration is a mapping of keys, not a {type(tree).__name__}")
    return Settings(schema, tree, origin, {key: f"{origin}:{line}" for key, line in lines.items()})


def read_text(name: str) -> str:
    """A text file that the user named, or an object in a bucket; `~` is the home folder."""
    path = Path(local_copy(name)).expanduser()
    try:
        return path.read_text("utf-8")
    except FileNotFoundError as error:
        raise UserError(not_found(path, "file")) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: its text is not UTF-8 ({error}): save it as UTF-8") from error


def changed(config: T, values: Mapping[str, Any], origin: str) -> Settings[T]:
    """A configuration with other values at dotted keys, not validated yet; `origin` names them in errors."""
    settings = Settings(type(config), config.model_dump(mode="json"), origin)
    for key, value in values.items():
        settings.put(key, value, f"{origin}: {key}")
    return settings


@dataclass
class Settings(Generic[T]):
    """A tree of settings that is not validated yet, and the origin of each."""

    schema: type[T]
    tree: dict[str, Any]
    name: str
    origins: dict[Key, str] = field(default_factory=dict)

    def override(self, *arguments: str) -> Settings[T]:
        """Apply each `key=value`; returns these settings."""
        for argument in arguments:
            dotted, _, text = argument.partition("=")
            self.put(dotted, strict_yaml.load_value(text, f"override {argument}"), argument)
        return self

    def put(self, dotted: str, value: Any, origin: str) -> None:
        """Set a key to a value; `origin` says where it came from."""
        *parents, last = key = self.key(dotted, origin)
        node: Any = self.tree
        for part in parents:
            if isinstance(node, dict) and node.get(part) is None:
                node[part] = {}
            node = node[part]
        node[last] = value
        self.origins = {k: o for k, o in self.origins.items() if k[: len(key)] != key}
        self.origins[key] = origin

    def merge(self, dotted: str, value: Any, origin: str) -> None:
        """Set a key to a value, but of a section only the settings in the value: `{train: {steps: 3}}` sets one.

        A schedule is one value. A mapping with names of the user's own is refused inside of a section's value, where it
        could mean to replace the present names or to add to them.
        """
        key = self.key(dotted, origin)
        present = reduce(_child, key, self.tree)
        if not isinstance(value, dict) or section_at(key, self.schema) in (None, Schedule) or isinstance(present, int):
            self.put(dotted, value, origin)
            return
        if present is None:
            self.put(dotted, {}, origin)
        for name, inner in value.items():
            within = f"{dotted}.{name}"
            if isinstance(inner, dict) and inner and _is_users_mapping(self.key(within, origin), self.schema):
                first = next(iter(inner))
                raise UserError(
                    f"{origin}: {within} holds names of your own: give {within}.{first} to set one of them, or "
                    f"{within} to replace them all, with the dots"
                )
            self.merge(within, inner, origin)

    def key(self, dotted: str, argument: str) -> Key:
        """Follow `a.b.c` through the tree; an item of a list is named by its position or its `name`."""
        if not dotted or dotted.endswith("."):
            raise UserError(f"{argument}: the name of the setting is missing")
        node: Any = self.tree
        key: Key = ()
        rest = dotted
        while rest:
            if node is None and (field := field_at(key, self.schema)) and is_list(field.annotation):
                node = []
            if isinstance(node, list):
                part, name = self._item(node, rest, ".".join(map(str, key)), argument)
                if isinstance(node[part], str) and rest != name:  # a string stands for the section of that name
                    node[part] = {"name": node[part]}
            elif isinstance(node, dict) or node is None:
                part = name = _longest_match([key for key in node or () if isinstance(key, str)], rest)
            else:
                above = ".".join(map(str, key))
                raise UserError(f"{argument}: {above} is {node!r}, a value without parts: give {above} as a whole")
            node = _child(node, part)
            key = (*key, part)
            rest = rest[len(name) :].removeprefix(".")
        return key

    @staticmethod
    def _item(items: list[Any], rest: str, above: str, argument: str) -> tuple[int, str]:
        names = [_name(item) for item in items]
        position = _longest_match(names, rest)
        if position in names:
            return names.index(position), position
        if position.isdecimal() and int(position) < len(items):
            return int(position), position
        known = ", ".join(f"{i} ({n})" if n else str(i) for i, n in enumerate(names)) or "none"
        raise UserError(f"{argument}: {above} has no item {position!r}; it has: {known}")

    def validate(self) -> T:
        """The typed settings; all errors together in one `UserError`, one line each."""
        try:
            return self.schema.model_validate(self.tree)
        except ValidationError as error:
            errors = error.errors(include_url=False)
            renamed = [(*e["loc"][:-1], new) for e in errors if (new := self._new_name(e))]
            lines = [self._explain(e) for e in errors if e["type"] != "missing" or e["loc"] not in renamed]
            raise UserError("\n".join(dict.fromkeys(lines))) from error

    def as_recorded(self) -> T:
        """The typed settings that a run has recorded, perhaps under a version with other settings and fewer rules.

        Settings that no longer exist are left out; a warning says what today's rules refuse. Raises UserError for
        values of a wrong type.
        """
        try:
            return self.validate()
        except UserError as refused:
            try:
                recorded = self.schema.model_validate(self.tree, extra="ignore", context=RECORDED)
            except ValidationError:
                raise refused from None
            log.warning("%s: read as it was recorded; today it would be refused: %s", self.name, refused)
            return recorded

    def removed(self) -> dict[str, Any]:
        """Recorded values of settings that this version does not have, by dotted key."""
        try:
            self.schema.model_validate(self.tree, context=RECORDED)
        except ValidationError as error:
            unknown = [e for e in error.errors(include_url=False) if e["type"] == "extra_forbidden"]
            return {self._dotted(e["loc"]): e["input"] for e in unknown}
        return {}

    def _explain(self, error: ErrorDetails) -> str:
        key = _without_union_branch(error["loc"], self.schema)
        dotted, origin = self._dotted(key), self._origin(key)
        if new := self._new_name(error):
            return f"{dotted} is called {new} now [{origin}]"
        if error["type"] == "extra_forbidden":
            problem = f"no such setting; {_suggestion(self.schema, key, dotted)}"
        elif error["type"] == "value_error":
            problem = error["msg"].removeprefix("Value error, ")
            origin = self._origins_named(problem) or origin
        else:
            problem = _wrong_value(self.schema, key, error)
        named = not dotted or problem.startswith((f"{dotted}.", f"{dotted}:"))  # a rule's message names the setting
        return f"{problem if named else f'{dotted}: {problem}'} [{origin}]"

    def _origins_named(self, problem: str) -> str:
        """The lines and overrides of those settings named by a rule's message that were given."""
        named = [tuple(dotted.split(".")) for dotted in _DOTTED.findall(problem)]
        given = [key for key in named if any(origin[: len(key)] == key for origin in self.origins)]
        return ", ".join(dict.fromkeys(map(self._origin, given)))

    def _new_name(self, error: ErrorDetails) -> str | None:
        """The new name of an unknown setting that was renamed; else None."""
        if error["type"] != "extra_forbidden":
            return None
        *above, name = error["loc"]
        return new_name(section_at(tuple(above), self.schema), str(name))

    def _dotted(self, key: Key) -> str:
        """The key as users write it, with items of a list by their name."""
        parts: list[str] = []
        node: Any = self.tree
        for part in key:
            node = _child(node, part)
            name = node.get("name") if isinstance(part, int) and isinstance(node, dict) else None
            parts.append(str(part if name is None else name))
        return ".".join(parts)

    def _origin(self, key: Key) -> str:
        """The line or override of a key, else that of a section around it, or of a setting in it."""
        above = (key[:n] for n in range(len(key), 0, -1) if key[:n] in self.origins)
        below = (k for k in self.origins if key and k[: len(key)] == key)
        nearest = next(above, None) or next(below, None)
        return redacted(self.origins[nearest]) if nearest else self.name


def _name(item: Any) -> str:
    """The name of an item of a list: its `name`, or the last part of a string (`lm_eval/gsm8k`)."""
    if isinstance(item, dict):
        return str(item.get("name"))
    return item.rpartition("/")[2] if isinstance(item, str) else ""


def _longest_match(names: list[str], dotted: str) -> str:
    """The longest of the names that a dotted key begins with, since names may hold dots; else the key's first part."""
    fitting = [name for name in names if name and (dotted == name or dotted.startswith(name + "."))]
    return max(fitting, key=len, default=dotted.partition(".")[0])


def _is_users_mapping(key: Key, schema: type[BaseModel]) -> bool:
    """Whether a key leads to a mapping whose names the user chooses."""
    field = field_at(key, schema)
    return field is not None and is_mapping(field.annotation)


def _child(node: Any, part: str | int) -> Any:
    """The value at `part` of a mapping or list; None if there is none."""
    if isinstance(node, list) and isinstance(part, int):
        return node[part] if part < len(node) else None
    return node.get(part) if isinstance(node, dict) else None


def _without_union_branch(key: Key, schema: type[BaseModel]) -> Key:
    """The key of an error, without the branch of a union (`int`, `literal[...]`) that pydantic adds at its end."""
    above = key[:-1]
    is_value = field_at(above, schema) and not section_at(above, schema) and not _is_users_mapping(above, schema)
    return above if is_value and isinstance(key[-1], str) else key


def _suggestion(schema: type[BaseModel], key: Key, dotted: str) -> str:
    """Which setting was probably meant: one of the same section, or one of the same name in another."""
    *names, last = str(key[-1]).split(".")
    if names and field_at((*key[:-1], *names, last), schema):
        opened = "".join(f"{name}: {{" for name in names)
        return f"dots are for command lines; in a file it is {opened}{last}: …{'}' * len(names)}"
    above = dotted.rpartition(".")[0]
    section = section_at(key[:-1], schema)
    siblings = list(section.model_fields) if section else []
    usual = ELSEWHERE.get(str(key[-1]), "")
    near = [name for name in siblings if usual.endswith(f".{name}")]
    if usual and not near and field_at((*usual.split("."),), schema):
        return f"did you mean {usual}?"
    near = near or difflib.get_close_matches(str(key[-1]), siblings, n=1)
    if near:
        return f"did you mean {above + '.' if above else ''}{near[0]}?"
    elsewhere = [f"{top}.{key[-1]}" for top in schema.model_fields if field_at((top, str(key[-1])), schema)]
    if elsewhere:
        return f"did you mean {' or '.join(elsewhere)}?"
    return f"{above or 'the top level'} has {', '.join(siblings)}"


def _wrong_value(schema: type[BaseModel], key: Key, error: ErrorDetails) -> str:
    """The message for a value of the wrong kind, or for a missing one."""
    setting, section, above = field_at(key, schema), section_at(key, schema), field_at(key[:-1], schema)
    wanted = explain(setting) if setting else error["msg"]
    if section and section is not Schedule and not (setting and is_list(setting.annotation)):
        wanted = f"a section with {', '.join(section.model_fields)}"
    elif above and not setting and is_mapping(above.annotation):
        wanted = f"{wants(get_args(above.annotation)[1])} ({above.description})"
    if error["type"] == "missing":
        return f"missing; give {wanted}"
    return f"{short(error['input'])} does not fit; give {wanted}{_HINTS.get(error['type'], '')}"
