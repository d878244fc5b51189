"""JSON schemas of settings files, for editors. They accept every way to write a schedule or a task."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from lingu_ray.config import strict_yaml
from lingu_ray.config.base import NAME
from lingu_ray.config.task_catalog import LM_EVAL, catalog

Schema = dict[str, Any]


class _Generator(GenerateJsonSchema):
    """Defaults as a user writes them (a constant schedule is a number), and no titles made from names."""

    def field_title_should_be_set(self, schema: object) -> bool:
        return False

    def encode_default(self, dft: Any) -> Any:
        return strict_yaml.load(strict_yaml.dump(dft), "default")[0]


def schema_of(model: type[BaseModel], title: str) -> Schema:
    """The JSON schema of a settings file for `model`."""
    schema = model.model_json_schema(schema_generator=_Generator)
    definitions = schema.setdefault("$defs", {})
    if "Schedule" in definitions:
        definitions["Schedule"] = _scheduled(definitions["Schedule"])
    if "TaskConfig" in definitions:
        definitions["TaskConfig"] = _task(definitions["TaskConfig"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": title}


def _scheduled(section: Schema) -> Schema:
    """A schedule: a number, its points, or the section; without a description, since each setting has its own."""
    value = {"type": "number", "minimum": 0}
    fraction = {"type": "number", "minimum": 0, "maximum": 1}
    point = {"type": "array", "prefixItems": [fraction, value], "minItems": 2, "maxItems": 2}
    points = {"type": "array", "items": point, "minItems": 1}
    written = {key: part for key, part in section.items() if key not in ("description", "required")}
    ways = {"anyOf": [{"required": section["required"]}, {"required": ["points"], "properties": {"points": points}}]}
    return {"anyOf": [value, points, written | ways]}


def _task(section: Schema) -> Schema:
    """A task: its name in the catalog, `lm_eval/NAME`, a section, or one that changes a task of the catalog."""
    harness = {"type": "string", "pattern": f"^{LM_EVAL}."}
    known = {"anyOf": [{"enum": list(catalog())}, harness]}
    own = section["properties"]
    name = own["name"] | {"pattern": NAME.replace("^", f"^({LM_EVAL})?")}
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
