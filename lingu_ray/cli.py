"""From the command line to a `Config`: a recipe or YAML file, then dotted `key=value` overrides."""

import difflib
from importlib.resources import files
from pathlib import Path

from lingu_ray import manual, strict_yaml
from lingu_ray.config import Config
from lingu_ray.errors import UserError
from lingu_ray.settings import OVERRIDE, Settings, T, parse, read_text


def load_config(argv: list[str]) -> Config:
    """Configuration from command-line arguments (see `manual.USAGE`); the recipe `demo` when none is named.

    `--help` and `--print-config` print and raise `SystemExit(0)`. Raises `UserError` for whatever is wrong.
    """
    recipes, overrides, options = split_arguments(argv)
    if {"-h", "--help"} & set(options):
        print(manual.manual())
        raise SystemExit(0)
    if unknown := [o for o in options if o != "--print-config"]:
        hint = f"; settings are given without dashes: {unknown[0].lstrip('-')}" if "=" in unknown[0] else ""
        raise UserError(f"unknown option {unknown[0]}{hint}\nusage: {manual.USAGE}")
    if len(recipes) > 1:
        raise UserError(f"more than one recipe or file: {', '.join(recipes)}\nusage: {manual.USAGE}")
    settings = read_recipe(recipes[0] if recipes else "demo")
    for override in overrides:
        settings.override(override)
    config = settings.validate()
    if "--print-config" in options:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def split_arguments(argv: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Names, `key=value` overrides, and options that begin with a dash."""
    options = [a for a in argv if a.startswith("-")]
    overrides = [a for a in argv if OVERRIDE.fullmatch(a)]
    return [a for a in argv if a not in options and a not in overrides], overrides, options


def load_yaml(path: Path) -> Config:
    """Configuration from a YAML file alone, such as a run's `config.yaml`."""
    return read_recipe(str(path)).validate()


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML; `load_yaml` reads back an equal one."""
    return strict_yaml.dump(config)


def read_recipe(recipe: str) -> Settings[Config]:
    """A recipe of the package by name, or a YAML file by path."""
    return read_named(recipe, "recipe", "lingu_ray", Config)


def read_named(name: str, kind: str, package: str, schema: type[T]) -> Settings[T]:
    """A YAML file that a package ships in its folder `<kind>s`, by name, or any by path."""
    known = manual.shipped(package, f"{kind}s")
    if name in known:
        return parse((files(package) / f"{kind}s" / f"{name}.yaml").read_text("utf-8"), f"{kind} {name}", schema)
    if name.endswith((".yaml", ".yml")):
        return parse(read_text(Path(name)), name, schema)
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    raise UserError(f"no {kind} {name!r}; {meant} A file is named by its path, ending in .yaml")
