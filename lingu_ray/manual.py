"""What `--help` teaches: every setting with its default, its meaning and what it wants, read off the `Config` tree."""

import shutil
import textwrap
from importlib.resources import files
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lingu_ray.config import Config, Schedule
from lingu_ray.strict_yaml import Key, dump

USAGE = "python -m lingu_ray.train [RECIPE | file.yaml] [key=value ...] [--print-config] [--help]"

_EXAMPLES = """\
  python -m lingu_ray.train                                     the embedded demo, offline
  python -m lingu_ray.train demo train.steps=30                 the same, shorter
  python -m lingu_ray.train smollm2-135m --print-config         the whole configuration as YAML; trains nothing
  python -m lingu_ray.train my.yaml distill.policy=none name=ce_only
  python -m lingu_ray.train my.yaml distill.temperature='{start: 4, end: 1}'
  python -m lingu_ray.train my.yaml corpus.sources.docvqa.limit=1000
  python -m lingu_ray.train my.yaml corpus.sources.0.prompt='"Question: {question}"'"""

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def recipes() -> dict[str, str]:
    """Name of every recipe in the package, with the first line of its comment."""
    return shipped("lingu_ray", "recipes")


def shipped(package: str, folder: str) -> dict[str, str]:
    """Name of every YAML file in a package's folder, with the first line of its comment."""
    texts = {p.name: p.read_text("utf-8") for p in (files(package) / folder).iterdir() if p.name.endswith(".yaml")}
    return {name.removesuffix(".yaml"): texts[name].split("\n", 1)[0].lstrip("# ") for name in sorted(texts)}


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section inside a field's type (itself, optional, or the item of a list), if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := section_in(arg))), None)


def is_list(annotation: Any) -> bool:
    """Whether a field holds any number of items."""
    return get_origin(annotation) is tuple and get_args(annotation)[-1] is Ellipsis


def section_at(key: Key, root: type[BaseModel] = Config) -> type[BaseModel] | None:
    """The section that `key` leads to; list positions and names in a mapping are passed over."""
    section: type[BaseModel] | None = root
    parts = iter(key)
    for part in parts:
        if section is None or isinstance(part, int):
            continue
        field = section.model_fields.get(part)
        section = section_in(field.annotation) if field else None
        if field and get_origin(field.annotation) is dict:
            next(parts, None)
    return section


def field_at(key: Key, root: type[BaseModel] = Config) -> FieldInfo | None:
    """The field that `key` leads to; list positions and names in a mapping are passed over."""
    names = [part for part in key if isinstance(part, str)]
    section = section_at(tuple(names[:-1]), root)
    return section.model_fields.get(names[-1]) if section and names else None


def wants(annotation: Any, metadata: tuple[Any, ...] | list[Any] = ()) -> str:
    """What a value must be, in words: 'a whole number above 0', 'selective | all | none', 'text or null'."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return wants(inner, more)
    arguments = get_args(annotation)
    if NoneType in arguments:
        return wants(arguments[0], metadata) + " or null"
    if get_origin(annotation) is Literal:
        return " | ".join(arguments)
    if get_origin(annotation) is dict:
        return "a mapping of names to values"
    if is_list(annotation):
        return "a list of sections, each with its keys" if section_in(annotation) else "a list"
    if get_origin(annotation) is tuple:
        return f"a list of {len(arguments)} numbers"
    if annotation is Schedule:
        return "a number, {start, end, shape, until}, or [[fraction, value], ...]"
    return _WORDS.get(annotation, "a section with its keys") + _bounds(metadata)


def _bounds(metadata: tuple[Any, ...] | list[Any]) -> str:
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    limits = [f"{words[name]} {getattr(m, name):g}" for m in metadata for name in words if hasattr(m, name)]
    patterns = [f"that matches {m.pattern}" for m in metadata if getattr(m, "pattern", None)]
    return "".join(f" {text}" for text in [" and ".join(limits), *patterns] if text)


def explain(setting: FieldInfo) -> str:
    """What a setting wants, and what it means."""
    description = setting.description or " ".join((getattr(setting.annotation, "__doc__", None) or "").split())
    return f"{wants(setting.annotation, setting.metadata)} ({description})"


def text_width() -> int:
    """Columns to fill: those of the terminal, within reason."""
    return min(max(shutil.get_terminal_size((120, 0)).columns, 80), 140)


def manual() -> str:
    """The text of `--help`."""
    width = text_width()
    names = recipes()
    longest = max(map(len, names))
    return "\n".join(
        [
            f"usage: {USAGE}",
            "",
            "Trains one run: a recipe (default: demo) with the settings given, into <output_dir>/<name>/",
            "Values are YAML. Items of a list are named by position or by their `name`.",
            "",
            "recipes:",
            *(f"  {name:<{longest}}  {line}" for name, line in names.items()),
            "",
            "examples:",
            _EXAMPLES,
            "",
            "settings (key = default):",
            *section_lines(Config, "", width),
            "",
            *_wrapped("schedules", "what a value that moves over the run is made of (temperature, weights).", width),
            *section_lines(Schedule, "SETTING.", width),
        ]
    )


def section_lines(section: type[BaseModel], prefix: str, width: int) -> list[str]:
    """Every setting of a section and of those inside it."""
    lines, nested = [], []
    for name, field in section.model_fields.items():
        inner = section_in(field.annotation)
        if inner is None or inner is Schedule or get_args(field.annotation):
            lines += _setting_lines(prefix + name, field, width)
        if inner is not None and inner is not Schedule:
            item = "NAME." if is_list(field.annotation) else ""
            nested += ["", *_wrapped(prefix + name, " ".join((inner.__doc__ or "").split()), width)]
            nested += section_lines(inner, f"{prefix}{name}.{item}", width)
    return lines + nested


def _wrapped(key: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(f"{key}: {text}", width, subsequent_indent="  ")


def _setting_lines(key: str, field: FieldInfo, width: int) -> list[str]:
    default = "(required)" if field.is_required() else f"= {dump(field.default, inline=True).strip()}"
    head = f"  {key} {default}"
    column = 46
    text = f"{field.description} ({wants(field.annotation, field.metadata)})"
    wrapped = textwrap.wrap(text, width - column, break_on_hyphens=False)
    if len(head) >= column:
        return [head, *(" " * column + line for line in wrapped)]
    return [head.ljust(column) + wrapped[0], *(" " * column + line for line in wrapped[1:])]
