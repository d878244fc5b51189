"""Print the JSON schema of a settings file, with which an editor completes, explains and checks what you type.

train       a run's file, as in python -m lingu_ray.train my.yaml (default)
evaluate    a file of tasks, as in python -m lingu_ray.evaluate MODEL tasks=tasks.yaml
sweep       a space, as in python -m tuning.sweep space.yaml

Write it beside the file and name it in the file's first line, where editors with yaml-language-server find it:

  python -m lingu_ray.schema train > train.schema.json
  # yaml-language-server: $schema=train.schema.json
"""

from __future__ import annotations

import json
from collections.abc import Callable

from lingu_ray.config import Config
from lingu_ray.config.command_line import split_arguments
from lingu_ray.config.help_pages import Help, NoSettings
from lingu_ray.config.json_schema import Schema, schema_of
from lingu_ray.config.layout import meant, print_file
from lingu_ray.errors import UserError, run_command

HELP = Help("python -m lingu_ray.schema [train | evaluate | sweep]", __doc__, NoSettings)


def main(arguments: list[str]) -> None:
    """Run the command; raises UserError for a mistake of the user."""
    names, settings, _ = split_arguments(arguments, HELP)
    if len(names) > 1 or settings:
        raise UserError(f"one schema at a time, without settings\nusage: {HELP.usage}")
    kind = names[0] if names else "train"
    if kind not in SCHEMAS:
        raise UserError(f"no schema {kind!r}; {meant(kind, SCHEMAS)}")
    print_file(json.dumps(SCHEMAS[kind](), indent=1, ensure_ascii=False))


def _train() -> Schema:
    return schema_of(Config, "lingu_ray: a run")


def _evaluate() -> Schema:
    from lingu_ray.evaluate import EvaluateConfig

    return schema_of(EvaluateConfig, "lingu_ray: tasks to measure models on")


def _sweep() -> Schema:
    from tuning.schema import space_schema

    return space_schema()


SCHEMAS: dict[str, Callable[[], Schema]] = {"train": _train, "evaluate": _evaluate, "sweep": _sweep}


if __name__ == "__main__":
    run_command(main)
