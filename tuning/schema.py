"""The JSON schema of a space: its keys, and the dotted settings of the configuration that it names."""

from __future__ import annotations

import re

from lingu_ray.config import Config
from lingu_ray.manual import sections
from lingu_ray.schema import Schema, schema_of
from tuning.space import NOT_SEARCHABLE, SEARCHABLE, Space


def space_schema() -> Schema:
    """What an editor is told of a space's file.

    `settings` and `cases` hold settings of the base, and `search` domains of those that may be searched. Where a
    setting is a list or a mapping, what follows its key is not checked.
    """
    schema = schema_of(Space, "lingu_ray: a sweep's space")
    run = schema_of(Config, "")
    schema["$defs"] |= run["$defs"]
    known = _dotted(run)
    searched = {k: v for k, v in known.items() if k.startswith(SEARCHABLE) and k not in NOT_SEARCHABLE}
    domains = {k: {"$ref": "#/$defs/Domain", "description": v.get("description", "")} for k, v in searched.items()}
    own = schema["properties"]
    own["search"] |= {"properties": domains, "propertyNames": _keys(searched)}
    for values in (own["settings"], own["cases"]["additionalProperties"]):
        values |= {"properties": known, "propertyNames": _keys(known)}
    return schema


def _dotted(run: Schema) -> dict[str, Schema]:
    """The schema of every setting that has a dotted key, sections included."""
    known: dict[str, Schema] = dict(run["properties"])
    for key, (section, prefix) in sections(Config).items():
        if "NAME" not in prefix:
            inside = run["$defs"][section.__name__]["properties"]
            known |= {f"{key}.{name}": value for name, value in inside.items()}
    return known


def _keys(known: dict[str, Schema]) -> Schema:
    """The keys that may be written: those known, and any inside a list or mapping."""
    open_ended = [re.escape(key) for key, value in known.items() if value.get("type") in ("array", "object")]
    return {"anyOf": [{"enum": list(known)}, {"pattern": rf"^({'|'.join(open_ended)})\."}]}
