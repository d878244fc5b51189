"""The JSON schema of a space: its keys, and the dotted settings of the configuration that it names."""

from __future__ import annotations

import re

from lingu_ray.config import Config, Schedule
from lingu_ray.config.help import sections
from lingu_ray.config.json_schema import Schema, schema_of
from tuning.space import SCHEDULED, Space, searchable


def space_schema() -> Schema:
    """What an editor is told of a space's file.

    `settings` and `cases` hold settings of the base, and `search` domains of those that may be searched. Where a
    setting is a list or a mapping, what follows its key is not checked.
    """
    schema = schema_of(Space, "lingu_ray: a sweep's space")
    run = schema_of(Config, "")
    schema["$defs"] |= run["$defs"]
    known = _dotted(run)
    searched = {key: value for key, value in known.items() if searchable(key)}
    own = schema["properties"]
    own["search"] |= _only(searched, {"$ref": "#/$defs/Domain"})
    own["settings"] |= _only(known)
    own["cases"]["additionalProperties"] |= _only(searched)
    return schema


def _dotted(run: Schema) -> dict[str, Schema]:
    """The schema of every setting that has a dotted key, sections and the parts of schedules included."""
    known: dict[str, Schema] = dict(run["properties"])
    for key, (section, prefix) in sections(Config).items():
        if "NAME" not in prefix:
            inside = run["$defs"][section.__name__]["properties"]
            known |= {f"{key}.{name}": value for name, value in inside.items()}
    moving = Schedule.model_json_schema()["properties"]
    return known | {f"{key}.{name}": value for key in SCHEDULED for name, value in moving.items()}


def _only(known: dict[str, Schema], each: Schema | None = None) -> Schema:
    """A mapping of these settings alone, and of what is inside those that are lists or mappings.

    `each` is what every one of them is given, in place of the setting's own value.
    """
    if each:
        given = {key: each | {"description": value.get("description", "")} for key, value in known.items()}
    else:
        given = known
    inside = "|".join(re.escape(key) for key, value in known.items() if value.get("type") in ("array", "object"))
    return {
        "properties": given,
        "patternProperties": {rf"^({inside})\.": each or {}},
        "additionalProperties": False,
    }
