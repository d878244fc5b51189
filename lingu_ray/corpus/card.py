"""The card of a data set, README.md, as the hub has it: it may list configurations, each with files of its own."""

from __future__ import annotations

import re

from lingu_ray import storage

_HEAD = re.compile(rb"---\r?\n(?:(?!---).*\n)*configs:(.*\n(?:(?:[ \t-](?!--)).*\n)*)")
_NAME = re.compile(rb"config_name:[ \t]*[\"']?([^\"'\r\n]+)")


def configurations(folder: str) -> list[str] | None:
    """Names of the configurations that the card of a folder, or location, lists; None: it has none, or lists none."""
    card = storage.below(folder, "README.md")
    if not storage.is_file(card):
        return None
    with storage.open_file(card) as file:
        head = _HEAD.match(file.read() or b"")
    return [name.decode(errors="replace").strip() for name in _NAME.findall(head[1])] if head else None
