"""The project's only reader and writer of YAML: scalars of YAML 1.2's core schema, and duplicate keys are errors.

PyYAML reads `1e-5` as text, `no` as false, `12:30` as 750 and `2024-01-01` as a date, and keeps the last of two equal
keys. Here `1e-5` is a number, the others are text, and a second key is an error. Written files read the same in YAML
1.1: text that either version takes for something else is quoted.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

import yaml
from pydantic import BaseModel

from lingu_ray.config.base import Schedule
from lingu_ray.errors import UserError

Key = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_COLLECTIONS = (f"{_TAG}map", f"{_TAG}seq")
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
_FITTING = {name: _SCALARS[name][0] for name in ("null", "bool", "int")} | {
    "float": f"{_SCALARS['float'][0]}|{_SCALARS['int'][0]}",
    "str": r"(?s:.*)",
}
"""Patterns of the scalars that a tag allows, as in `!!float 3`."""
_ODD_BREAKS = re.compile("[\r\x85\u2028\u2029]")
YAMLError = yaml.YAMLError
"""What other libraries raise for malformed YAML, for example in the cards of data sets."""
_CURES = {
    "alias": "quote text that begins with *",
    "mapping values are not allowed": "a key is written as `key: value`, indented like the keys beside it; quote text "
    "with a colon and a blank in it",
    "quoted scalar": "close the quote that opens on line {line}",
    "flow ": "close the bracket that opens on line {line}, or put the comma that is missing",
    "block end": "indent what belongs together alike, and quote text with quotes or brackets in it",
    "'\\t'": "indent with blanks instead of tabs",
    "cannot start any token": "quote text that begins with such a sign",
}
"""Cures for syntax errors, by a part of PyYAML's message; `line`: where the broken part begins."""
MOST_REPEATED = 100_000  # values that aliases may stand for in all: aliases of aliases multiply


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (PyYAML's own attribute)


class _Dumper(yaml.SafeDumper):
    """Knows PyYAML's own scalars beside ours, and quotes text that either takes for something else."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)  # list items are indented under their key

    def ignore_aliases(self, data: Any) -> bool:
        return True  # equal defaults are one object: write each out


for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"^(?:{_pattern})$"), _first)


def load(text: str, origin: str) -> tuple[Any, dict[Key, int]]:
    """Parse one YAML document; returns its value, and the line (from 1) of every key and list item.

    `origin` names the text in errors. Raises `UserError` for malformed YAML, a character that YAML does not allow, a
    key that is given twice or is no text, a value that contains itself, aliases that multiply, and a number with too
    many digits for Python.
    """
    if found := _Loader.NON_PRINTABLE.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise UserError(f"{origin}:{line}: not valid YAML: the character {found[0]!a}; remove it")
    loader = _Loader(text)
    reader = _Reader(loader, origin)
    try:
        node = loader.get_single_node()
        return (None if node is None else reader.value(node, ())), reader.lines
    except yaml.MarkedYAMLError as error:
        where = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        said = f"{error.context} {error.problem}"
        line = error.context_mark.line + 1 if error.context_mark else ""
        cure = next((f"; {cure.format(line=line)}" for sign, cure in _CURES.items() if sign in said), "")
        raise UserError(f"{origin}{where}: not valid YAML: {error.problem or error.context}{cure}") from error
    except RecursionError as error:
        raise UserError(f"{origin}: nested too deep to be settings: close its brackets, or remove them") from error
    finally:
        loader.dispose()


def load_value(text: str, origin: str) -> Any:
    """A value on the command line: YAML, except that no `#` begins a comment in text without quotes (`runs/try #2`).

    Raises `UserError` as `load`.
    """
    value, _ = load(text, origin)
    node = _Loader(text).get_single_node()
    if node is None or (_is_plain(node) and text[node.end_mark.index :].strip()):
        return text.strip() or None
    return value


def _is_plain(node: yaml.Node | None) -> bool:
    """Whether it is text without quotes."""
    return isinstance(node, yaml.ScalarNode) and node.style is None


class _Reader:
    """Makes values of a document's nodes. The nodes stay unchanged, since aliases (`*x`) lead to one several times."""

    def __init__(self, loader: _Loader, origin: str):
        self.loader, self.origin = loader, origin
        self.lines: dict[Key, int] = {}
        self.around: list[yaml.Node] = []
        self.entered: set[yaml.Node] = set()
        self.repeated = 0

    def value(self, node: yaml.Node, key: Key) -> Any:
        """The value of a node; notes the lines of all keys and items in it."""
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        with self._inside(node, key):
            if node.tag not in _COLLECTIONS:
                raise self._error(node, f"not valid YAML here: tag {node.tag}")
            if isinstance(node, yaml.SequenceNode):
                return [self._noted(item, item, (*key, i)) for i, item in enumerate(node.value)]
            assert isinstance(node, yaml.MappingNode)
            entries = self._entries(node, key)
            return {name: self._noted(at, inner, (*key, name)) for name, (at, inner) in entries.items()}

    def _noted(self, place: yaml.Node, node: yaml.Node, key: Key) -> Any:
        self.lines[key] = place.start_mark.line + 1
        return self.value(node, key)

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        """The value of a scalar; a tag that the user gives (`!!float 3`) must fit it."""
        name = node.tag.removeprefix(_TAG)
        if name not in _FITTING:
            raise self._error(node, f"not valid YAML here: tag {node.tag}")
        if not re.fullmatch(_FITTING[name], node.value):
            raise self._error(node, f"not valid YAML: {node.value!r} does not fit its tag !!{name}")
        try:
            return self.loader.construct_object(node)
        except ValueError as error:  # Python's limit
            raise self._error(node, f"a number of {len(node.value)} digits: shorten it") from error

    def _entries(self, node: yaml.MappingNode, key: Key) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """The nodes of key and value, by the key's text; a mapping's own keys replace those that `<<` merges."""
        self._check_keys(node, key)
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for source in reversed([source for at, inner in node.value if at.tag == _MERGE for source in _sources(inner)]):
            with self._inside(source, key):
                if not isinstance(source, yaml.MappingNode):
                    raise self._error(source, "<< merges a mapping, or a list of mappings; this is none")
                found |= self._entries(source, key)
        return found | {at.value: (at, inner) for at, inner in node.value if at.tag != _MERGE}

    def _check_keys(self, node: yaml.MappingNode, key: Key) -> None:
        """Refuse a key that is no text, is given twice, or has its value in it, as in `{a:1}`."""
        first: dict[str, int] = {}
        for at, inner in node.value:
            if not isinstance(at, yaml.ScalarNode):
                raise self._error(at, "a key must be plain text; quote text that begins with {")
            if node.flow_style and ":" in at.value and _is_plain(at) and _is_plain(inner) and not inner.value:
                raise self._error(at, f"{at.value!r} has no value: YAML wants a blank after the colon, as in {{a: 1}}")
            if at.value in first:
                dotted = ".".join(map(str, (*key, at.value)))
                raise self._error(at, f"{dotted} is given twice, first on line {first[at.value]}: remove one")
            first[at.value] = at.start_mark.line + 1

    @contextmanager
    def _inside(self, node: yaml.Node, key: Key) -> Iterator[None]:
        """Refuse a node that contains itself, or that aliases repeat too often."""
        problem = "contains itself, by an alias (*)" if any(node is one for one in self.around) else ""
        self.repeated += len(node.value) if node in self.entered else 0
        if self.repeated > MOST_REPEATED:
            problem = f"is where aliases (*) have repeated more than {MOST_REPEATED} values"
        if problem:
            line, what = self.lines.get(key, node.start_mark.line + 1), ".".join(map(str, key)) or "the document"
            raise UserError(f"{self.origin}:{line}: {what} {problem}: write the values out")
        self.entered.add(node)
        self.around.append(node)
        yield
        self.around.pop()

    def _error(self, node: yaml.Node, problem: str) -> UserError:
        return UserError(f"{self.origin}:{node.start_mark.line + 1}: {problem}")


def _sources(merged: yaml.Node) -> list[yaml.Node]:
    """The nodes that a `<<` merges: one, or a list in which an earlier node counts more."""
    return merged.value if isinstance(merged, yaml.SequenceNode) else [merged]


def _represent_text(dumper: _Dumper, text: str) -> yaml.Node:
    """Text, in quotes where it holds unusual line breaks: quotes escape them, plain text would lose them."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if _ODD_BREAKS.search(text) else None)


def _represent_section(dumper: _Dumper, section: BaseModel) -> yaml.Node:
    if isinstance(section, Schedule) and section == Schedule(start=section.start, end=section.start):
        return dumper.represent_data(section.start)
    if isinstance(section, Schedule) and section.points:
        return dumper.represent_data([list(point) for point in section.points])
    return dumper.represent_data({name: getattr(section, name) for name in type(section).model_fields})


_Dumper.add_representer(str, _represent_text)
_Dumper.add_multi_representer(BaseModel, _represent_section)
_Dumper.add_multi_representer(PurePath, lambda dumper, path: dumper.represent_str(str(path)))


def dump(value: Any, inline: bool = False) -> str:
    """YAML that `load` reads back as the same tree; `inline`: on one line.

    A section is written with all of its keys, a constant schedule as a number, one of points as a list.
    """
    width = 1_000_000 if inline else 120
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width, default_flow_style=inline)
    return text.removesuffix("\n...\n").strip() if inline else text
