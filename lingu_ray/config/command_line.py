"""From the command line to settings: a recipe or YAML file, then dotted `key=value` overrides."""

import difflib
import re
from collections.abc import Collection
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from lingu_ray.commands import recipes, shipped
from lingu_ray.config import Config, Schedule, strict_yaml
from lingu_ray.config.help import setting_lines
from lingu_ray.config.help_pages import Help
from lingu_ray.config.layout import meant, print_file, table, text_width
from lingu_ray.config.settings import OVERRIDE, Settings, T, parse, read_text
from lingu_ray.config.tree import field_at
from lingu_ray.errors import UserError

USAGE = "python -m lingu_ray.train [RECIPE | file.yaml] [key=value ...] [--print-config] [--help [SECTION]]"

_ABOUT = """\
Trains one run: a recipe (default: demo) with the settings given, into <output_dir>/<name>/
Values are YAML. Items of a list are named by position or by their `name`.

recipes:
{recipes}

examples:
  python -m lingu_ray.train                                     the embedded demo, offline
  python -m lingu_ray.train demo train.steps=30                 the same, shorter
  python -m lingu_ray.train smollm2-135m --print-config         the whole configuration as YAML; trains nothing
  python -m lingu_ray.train my.yaml distill.policy=none name=plain_ce
  python -m lingu_ray.train my.yaml distill.temperature='{{start: 4, end: 1}}'
  python -m lingu_ray.train my.yaml corpus.sources.docvqa.limit=1000
  python -m lingu_ray.train my.yaml corpus.sources.0.prompt='"Question: {{question}}"'"""


class Arguments(NamedTuple):
    """The parts of a command line: names, `key=value` settings, and options that start with a dash."""

    names: list[str]
    settings: list[str]
    options: list[str]


def load_config(argv: list[str]) -> Config:
    """Configuration from command-line arguments (see `USAGE`); the recipe `demo` when none is named.

    `--help` and `--print-config` print and raise `SystemExit(0)`. Raises `UserError` for whatever is wrong.
    """
    named, overrides, options = split_arguments(argv, train_help(), ("--print-config",))
    if len(named) > 1:
        raise UserError(f"more than one recipe or file: {', '.join(named)}\nusage: {USAGE}")
    config = read_run(named[0] if named else "demo", overrides)
    if options:
        print_file(to_yaml(config).rstrip("\n"))
        raise SystemExit(0)
    return config


def train_help() -> Help[Config]:
    """The pages of training's `--help`."""
    width = text_width()
    schedules = ["values that move over the run (temperature, weights)"]
    schedules += setting_lines(Schedule, "SETTING.", width)
    about = _ABOUT.format(recipes="\n".join(table(recipes(), width)))
    return Help(USAGE, about, Config, {"schedules": "\n".join(schedules)})


def split_arguments(argv: list[str], help: Help, known: Collection[str] = ()) -> Arguments:
    """Split a command line into its parts; `known`: the options that the command takes besides `--help`.

    `--help`, `--help SECTION` and `--help=SECTION` print and raise `SystemExit(0)`; words after `--help` are topics.

    Raises:
        UserError: an unknown option, an invalid key, or help on a topic that does not exist.
    """
    for index, argument in enumerate(argv):
        option, _, topic = argument.partition("=")
        if option in ("-h", "--help"):
            after = [word for word in argv[index + 1 :] if not word.startswith("-") and not OVERRIDE.fullmatch(word)]
            help.show([topic, *after] if topic else after)
    options = [a for a in argv if a.startswith("-")]
    if unknown := next((option for option in options if option not in known), None):
        raise UserError(f"unknown option {unknown}{_meant(unknown, help, known)}\nusage: {help.usage}")
    settings = [a for a in argv if OVERRIDE.fullmatch(a)]
    names = [a for a in argv if a not in options and a not in settings]
    sections = {*help.schema.model_fields, *Config.model_fields}
    for name in names:
        key, equals, _ = name.partition("=")
        if "." in key and not equals and any(field_at((*key.split("."),), root) for root in (help.schema, Config)):
            raise UserError(f"{key}: a setting is given as key=value, without blanks: {key}=...\nusage: {help.usage}")
        if equals and re.split(r"\W", key.strip())[0] in sections and not Path(name).exists():
            raise UserError(
                f"{name!r} is no key=value: a key has letters, digits, _, - and dots, without blanks around it. Give a "
                "name with other characters inside of its mapping, as in tracking.tags='{my tag: x}', and a task by "
                "what follows lm_eval/"
            )
    return Arguments(names, settings, options)


def _meant(option: str, help: Help, known: Collection[str]) -> str:
    """What the user may have meant by an unknown option."""
    name, equals, value = option.lstrip("-").partition("=")
    name = name.replace("-", "_")
    if equals or "." in name or name in help.schema.model_fields:
        return f"; settings are given without dashes: {name}={value or '...'}"
    near = difflib.get_close_matches(option, [*known, "--help"], n=1)
    return f"; did you mean {near[0]}?" if near else ""


def names_and_settings(arguments: list[str], help: Help[T]) -> tuple[list[str], T]:
    """Names and settings of a command; raises `UserError` for whatever is wrong in the settings."""
    names, given, _ = split_arguments(arguments, help)
    return names, read_settings(given, help.schema)


def settings_alone(arguments: list[str], help: Help[T]) -> T:
    """The settings of a command that takes nothing but settings; raises `UserError` for whatever is wrong."""
    names, given, _ = split_arguments(arguments, help)
    if names:
        raise UserError(f"{names[0]!r} is not a setting: the command takes key=value alone\nusage: {help.usage}")
    return read_settings(given, help.schema)


def run_and_own(arguments: list[str], help: Help[T]) -> tuple[Config, list[str], T]:
    """A run as training takes it, further names, and the command's own settings.

    A misspelled key counts as the command's own where it is nearer to one of those than to one of the run's.

    Raises:
        UserError: for whatever is wrong in them.
    """
    names, given, _ = split_arguments(arguments, help)
    recipe, *further = names or ["demo"]
    mine = [argument for argument in given if is_own(argument.partition("=")[0], help.schema)]
    run = read_run(recipe, [argument for argument in given if argument not in mine])
    return run, further, read_settings(mine, help.schema)


def is_own(key: str, own: type[BaseModel]) -> bool:
    """Whether a key without dots is, or is nearest to, a setting of the command itself and not one of the run."""
    near = difflib.get_close_matches(key, [*own.model_fields, *Config.model_fields], n=1)
    return bool(near) and near[0] in own.model_fields and "." not in key


def read_settings(arguments: list[str], schema: type[T]) -> T:
    """Settings from `key=value` arguments alone, without a file; raises `UserError` for whatever is wrong."""
    return Settings(schema, {}, "command line").override(*arguments).validate()


def read_run(recipe: str, overrides: list[str]) -> Config:
    """A recipe or file with `key=value` overrides; raises `UserError` for whatever is wrong."""
    return read_recipe(recipe).override(*overrides).validate()


def load_yaml(path: Path) -> Config:
    """The configuration that a run was trained with, from its `config.yaml`."""
    return read_recipe(str(path)).as_recorded()


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML; `load_yaml` reads back an equal one."""
    return strict_yaml.dump(config)


def read_recipe(recipe: str) -> Settings[Config]:
    """A recipe of the package by name, or a YAML file by path."""
    return read_named(recipe, "recipe", "lingu_ray", Config)


def read_named(name: str, kind: str, package: str, schema: type[T]) -> Settings[T]:
    """A YAML file: by name one of the package's folder `<kind>s`, or any by its path or location."""
    known = shipped(package, f"{kind}s")
    if name in known:
        return parse((files(package) / f"{kind}s" / f"{name}.yaml").read_text("utf-8"), f"{kind} {name}", schema)
    if name.endswith((".yaml", ".yml")):
        return parse(read_text(name), name, schema)
    files_of_the_name = (Path(name).expanduser() / "config.yaml", Path(f"{name}.yaml"))
    near = next((f"did you mean {file}?" for file in files_of_the_name if file.is_file()), None)
    said = near or meant(name, known)
    raise UserError(f"no {kind} {name!r}; {said}\nA file is named by its path, ending in .yaml")
