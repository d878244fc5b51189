"""The project's YAML, read and written: the scalars of YAML 1.2's core schema, and no key given twice.

PyYAML reads `1e-5` as text, `no` as false, `12:30` as 750 and `2024-01-01` as a date, and keeps the last of two equal
keys. Here `1e-5` is a number, the others are text, and a second key is an error. What is written reads the same in
YAML 1.1: text that either version takes for something else is quoted.
"""

import re
from pathlib import PurePath
from typing import Any

import yaml
from pydantic import BaseModel

from lingu_ray.config.base import Schedule
from lingu_ray.errors import UserError

Key = tuple[str | int, ...]

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


_ODD_BREAKS = re.compile("[\r\x85\u2028\u2029]")
_COLLECTIONS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (PyYAML's own attribute)


class _Dumper(yaml.SafeDumper):
    """Keeps PyYAML's own scalars beside ours: text that either reading takes for something else is quoted."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)  # list items are indented under their key

    def ignore_aliases(self, data: Any) -> bool:
        return True  # equal defaults are one object: write each out


for _name, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)


def load(text: str, origin: str) -> tuple[Any, dict[Key, int]]:
    """Parse one YAML document; also give the line (from 1) on which every key and list item stands.

    `origin` names the text in errors. Raises `UserError` for malformed YAML, a key given twice, a key not text.
    """
    loader = _Loader(text)
    lines: dict[Key, int] = {}
    try:
        node = loader.get_single_node()
        return (None if node is None else _construct(loader, node, (), lines, origin)), lines
    except yaml.MarkedYAMLError as error:
        where = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{origin}{where}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{origin}: not valid YAML: {error}") from error
    finally:
        loader.dispose()


def _construct(loader: _Loader, node: yaml.Node, key: Key, lines: dict[Key, int], origin: str) -> Any:
    if isinstance(node, yaml.CollectionNode) and node.tag not in _COLLECTIONS:
        raise UserError(f"{origin}:{node.start_mark.line + 1}: not valid YAML here: tag {node.tag}")
    if isinstance(node, yaml.SequenceNode):
        items = []
        for i, item in enumerate(node.value):
            lines[*key, i] = item.start_mark.line + 1
            items.append(_construct(loader, item, (*key, i), lines, origin))
        return items
    if isinstance(node, yaml.MappingNode):
        _refuse_twice(node, key, origin)
        loader.flatten_mapping(node)
        mapping = {}
        for key_node, value_node in node.value:
            lines[*key, key_node.value] = key_node.start_mark.line + 1
            mapping[key_node.value] = _construct(loader, value_node, (*key, key_node.value), lines, origin)
        return mapping
    return loader.construct_object(node)


def _refuse_twice(node: yaml.MappingNode, key: Key, origin: str) -> None:
    first: dict[str, int] = {}
    for key_node, _ in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{origin}:{line}: a key must be plain text")
        name = key_node.value
        if name in first:
            dotted = ".".join(map(str, (*key, name)))
            raise UserError(f"{origin}:{line}: {dotted} is given twice, first on line {first[name]}: remove one")
        first[name] = line


def _represent_text(dumper: _Dumper, text: str) -> yaml.Node:
    """Text; with line breaks beside the usual one it is quoted so that they are escaped, as plain text loses them."""
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
    """YAML that `load` reads back as the same tree. Sections of the configuration are written with every key, in order,
    a schedule that does not move as its number, one of points as their list. `inline`: all on one line.
    """
    width = 1_000_000 if inline else 120
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width, default_flow_style=inline)
    return text.removesuffix("\n...\n") if inline else text
