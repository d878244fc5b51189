"""From the command line to a `Config`: a recipe or YAML file, then dotted `key=value` overrides.

Whatever is wrong is told in one line each: the key, its value, what it wants, and the file and line or override it
came from.
"""

import difflib
import re
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from lingu_ray import manual, strict_yaml
from lingu_ray.config import Config
from lingu_ray.errors import UserError
from lingu_ray.strict_yaml import Key

_OVERRIDE = re.compile(r"([A-Za-z_][\w.-]*)=(.*)", re.DOTALL)


def load_config(argv: list[str]) -> Config:
    """Configuration from command-line arguments (see `manual.USAGE`); the recipe `demo` when none is named.

    `--help` and `--print-config` print and raise `SystemExit(0)`. Raises `UserError` for whatever is wrong.
    """
    options = [a for a in argv if a.startswith("-")]
    overrides = [a for a in argv if _OVERRIDE.fullmatch(a)]
    recipes = [a for a in argv if a not in options and a not in overrides]
    if {"-h", "--help"} & set(options):
        print(manual.manual())
        raise SystemExit(0)
    if unknown := [o for o in options if o != "--print-config"]:
        hint = f"; settings are given without dashes: {unknown[0].lstrip('-')}" if "=" in unknown[0] else ""
        raise UserError(f"unknown option {unknown[0]}{hint}\nusage: {manual.USAGE}")
    if len(recipes) > 1:
        raise UserError(f"more than one recipe or file: {', '.join(recipes)}\nusage: {manual.USAGE}")
    settings = _read(recipes[0] if recipes else "demo")
    for override in overrides:
        settings.override(override)
    config = settings.validate()
    if "--print-config" in options:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def load_yaml(path: Path) -> Config:
    """Configuration from a YAML file alone, such as a run's `config.yaml`."""
    return _read(str(path)).validate()


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML; `load_yaml` reads back an equal one."""
    return strict_yaml.dump(config)


@dataclass
class _Settings:
    """A tree of settings that is not validated yet, and where each came from."""

    tree: dict[str, Any]
    name: str
    origins: dict[Key, str] = field(default_factory=dict)

    def override(self, argument: str) -> None:
        """Apply one `key=value`."""
        dotted, _, text = argument.partition("=")
        value, _ = strict_yaml.load(text, f"override {argument}")
        *parents, last = key = self._key(dotted, argument)
        node: Any = self.tree
        for part in parents:
            if isinstance(node, dict) and node.get(part) is None:
                node[part] = {}
            node = node[part]
        node[last] = value
        self.origins = {k: origin for k, origin in self.origins.items() if k[: len(key)] != key}
        self.origins[key] = argument

    def _key(self, dotted: str, argument: str) -> Key:
        """Follow `a.b.c` through the tree; an item of a list is named by its position or its `name`."""
        node: Any = self.tree
        key: Key = ()
        rest = dotted
        while rest:
            if isinstance(node, list):
                part, name = self._item(node, rest, ".".join(map(str, key)), argument)
            elif isinstance(node, dict) or node is None:
                part = name = rest.partition(".")[0]
            else:
                above = ".".join(map(str, key))
                raise UserError(f"{argument}: {above} is {node!r}, a value without parts: give {above} as a whole")
            node = _child(node, part)
            key = (*key, part)
            rest = rest[len(name) :].removeprefix(".")
        return key

    @staticmethod
    def _item(items: list[Any], rest: str, above: str, argument: str) -> tuple[int, str]:
        names = [str(item.get("name")) if isinstance(item, dict) else "" for item in items]
        # Names may hold dots: the longest that fits is meant.
        fitting = [n for n in names if n and (rest == n or rest.startswith(n + "."))]
        if fitting:
            name = max(fitting, key=len)
            return names.index(name), name
        position = rest.partition(".")[0]
        if position.isdecimal() and int(position) < len(items):
            return int(position), position
        known = ", ".join(f"{i} ({n})" if n else str(i) for i, n in enumerate(names)) or "none"
        raise UserError(f"{argument}: {above} has no item {position!r}; it has: {known}")

    def validate(self) -> Config:
        """The typed configuration; every error of it in one `UserError`, a line each."""
        try:
            return Config.model_validate(self.tree)
        except ValidationError as error:
            lines = [self._explain(e) for e in error.errors(include_url=False)]
            raise UserError("\n".join(lines)) from error

    def _explain(self, error: ErrorDetails) -> str:
        key = error["loc"]
        dotted = self._dotted(key)
        if error["type"] == "extra_forbidden":
            problem = f"no such setting; {_nearest(key, dotted)}"
        elif error["type"] == "value_error":
            problem = error["msg"].removeprefix("Value error, ")
        else:
            problem = _unfit(key, error)
        return f"{dotted + ': ' if dotted else ''}{problem} [{self._origin(key)}]"

    def _dotted(self, key: Key) -> str:
        """The key as one writes it: items of a list by their name."""
        parts: list[str] = []
        node: Any = self.tree
        for part in key:
            node = _child(node, part)
            name = node.get("name") if isinstance(part, int) and isinstance(node, dict) else None
            parts.append(str(part if name is None else name))
        return ".".join(parts)

    def _origin(self, key: Key) -> str:
        """Where a key came from: its own line or override, else that of what holds it, or of what it holds."""
        above = (key[:n] for n in range(len(key), 0, -1) if key[:n] in self.origins)
        below = (k for k in self.origins if key and k[: len(key)] == key)
        nearest = next(above, None) or next(below, None)
        return self.origins[nearest] if nearest else self.name


def _child(node: Any, part: str | int) -> Any:
    """What stands under `part` of a mapping or list; None where nothing does."""
    if isinstance(node, list) and isinstance(part, int):
        return node[part] if part < len(node) else None
    return node.get(part) if isinstance(node, dict) else None


def _nearest(key: Key, dotted: str) -> str:
    """Which setting may have been meant: of the same section, or of the same name elsewhere."""
    above = dotted.rpartition(".")[0]
    section = manual.section_at(key[:-1])
    siblings = list(section.model_fields) if section else []
    near = difflib.get_close_matches(str(key[-1]), siblings, n=1)
    if near:
        return f"did you mean {above + '.' if above else ''}{near[0]}?"
    elsewhere = [f"{top}.{key[-1]}" for top in Config.model_fields if manual.field_at((top, str(key[-1])))]
    if elsewhere:
        return f"did you mean {' or '.join(elsewhere)}?"
    return f"{above or 'the top level'} has {', '.join(siblings)}"


def _unfit(key: Key, error: ErrorDetails) -> str:
    """A value of the wrong kind, or none where one is needed."""
    setting = manual.field_at(key)
    wanted = manual.explain(setting) if setting else error["msg"]
    if error["type"] == "missing":
        return f"missing; give {wanted}"
    value = strict_yaml.dump(error["input"], inline=True).strip()
    quote = "; quote text that YAML reads otherwise" if error["type"] == "string_type" else ""
    return f"{value if len(value) < 80 else value[:77] + '...'} does not fit; give {wanted}{quote}"


def _read(recipe: str) -> _Settings:
    """A recipe of the package by name, or a YAML file by path."""
    known = manual.recipes()
    if recipe in known:
        origin = f"recipe {recipe}"
        text = (files("lingu_ray") / "recipes" / f"{recipe}.yaml").read_text("utf-8")
    elif recipe.endswith((".yaml", ".yml")):
        origin = recipe
        text = _read_file(Path(recipe))
    else:
        near = difflib.get_close_matches(recipe, known, n=1)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise UserError(f"no recipe {recipe!r}; {meant} A file is named by its path, ending in .yaml")
    tree, lines = strict_yaml.load(text, origin)
    if not isinstance(tree, dict):
        raise UserError(f"{origin}: a configuration is a mapping of keys, this is {type(tree).__name__}")
    return _Settings(tree, origin, {key: f"{origin}:{line}" for key, line in lines.items()})


def _read_file(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
