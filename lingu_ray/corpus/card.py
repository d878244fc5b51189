"""The card of a data set, README.md, as the hub has it: it may list configurations, each with files of its own."""

from __future__ import annotations

import re

import yaml

from lingu_ray import storage

_HEAD = re.compile(r"---\r?\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)


def configurations(folder: str) -> list[str] | None:
    """Names of the configurations that the card of a folder, or location, lists; None: it has none, or lists none."""
    card = storage.below(folder, "README.md")
    if not storage.is_file(card):
        return None
    with storage.open_file(card) as file:
        head = _HEAD.match(file.read().decode("utf-8-sig", errors="replace"))
    try:
        settings = yaml.safe_load(head[1]) if head else None
    except (yaml.YAMLError, ValueError):  # a date that is none, for instance
        return None
    configs = settings.get("configs") if isinstance(settings, dict) else None
    if not isinstance(configs, list):
        return None
    return [str(one["config_name"]) for one in configs if isinstance(one, dict) and "config_name" in one]
