"""Print the JSON schema of a settings file, with which an editor completes, explains and checks what you type.

train       a run's file, as in python -m lingu_ray.train my.yaml (default)
evaluate    a file of tasks, as in python -m lingu_ray.evaluate MODEL tasks=tasks.yaml
sweep       a space, as in python -m tuning.sweep space.yaml

Write it beside the file and name it in the file's first line, where editors with yaml-language-server find it:

  python -m lingu_ray.schema train > train.schema.json
  # yaml-language-server: $schema=train.schema.json
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from lingu_ray.config import Config, strict_yaml
from lingu_ray.config.command_line import split_arguments
from lingu_ray.config.help_pages import Help
from lingu_ray.config.task_catalog import LM_EVAL, catalog
from lingu_ray.errors import UserError, run_command

Schema = dict[str, Any]

HELP = Help("python -m lingu_ray.schema [train | evaluate | sweep]", __doc__)


class _Generator(GenerateJsonSchema):
    """Defaults as a user writes them (a constant schedule is a number), and no titles made from names."""

    def field_title_should_be_set(self, schema: object) -> bool:
        return False

    def encode_default(self, dft: Any) -> Any:
        return strict_yaml.load(strict_yaml.dump(dft), "default")[0]


def main(arguments: list[str]) -> None:
    """Run the command; raises UserError for a mistake of the user."""
    names, settings, _ = split_arguments(arguments, HELP)
    if len(names) > 1 or settings:
        raise UserError(f"one schema at a time, without settings\nusage: {HELP.usage}")
    kind = names[0] if names else "train"
    if kind not in SCHEMAS:
        near = difflib.get_close_matches(kind, SCHEMAS, n=1)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(SCHEMAS)}"
        raise UserError(f"no schema {kind!r}; {meant}")
    print(json.dumps(SCHEMAS[kind](), indent=1, ensure_ascii=False))


def schema_of(model: type[BaseModel], title: str) -> Schema:
    """The JSON schema of a settings file: what `model` accepts, schedules and tasks however they are written."""
    schema = model.model_json_schema(schema_generator=_Generator)
    definitions = schema.setdefault("$defs", {})
    if "Schedule" in definitions:
        definitions["Schedule"] = _scheduled(definitions["Schedule"])
    if "TaskConfig" in definitions:
        definitions["TaskConfig"] = _task(definitions["TaskConfig"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": title}


def _scheduled(section: Schema) -> Schema:
    """A schedule: a number, its points, or the section. An editor explains each by the setting's own description."""
    value = {"type": "number", "minimum": 0}
    fraction = {"type": "number", "minimum": 0, "maximum": 1}
    point = {"type": "array", "prefixItems": [fraction, value], "minItems": 2, "maxItems": 2}
    points = {"type": "array", "items": point, "minItems": 1}
    return {"anyOf": [value, points, {key: part for key, part in section.items() if key != "description"}]}


def _task(section: Schema) -> Schema:
    """A task: its name in the catalog, `lm_eval/NAME`, a section, or one that changes a task of the catalog."""
    harness = {"type": "string", "pattern": f"^{LM_EVAL}."}
    known = {"anyOf": [{"enum": list(catalog())}, harness]}
    own = section["properties"]
    name = own["name"] | {"pattern": f"^({LM_EVAL})?[A-Za-z0-9_.-]+$"}
    like = known | {"description": "task of the catalog, or lm_eval/NAME, that says what is not said here"}
    whole = {"required": list(section["required"]), "properties": {"name": own["name"], "like": False}}
    changed = {"anyOf": [{"required": ["like"]}, {"properties": {"name": known}}]}
    written = section | {
        "properties": own | {"name": name, "like": like},
        "required": ["name"],
        "if": {"required": ["type"]},
        "then": whole,
        "else": changed,
    }
    return {"anyOf": [*known["anyOf"], written]}


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
