"""Settings that have a new name. The old one is refused, and the message gives the new one."""

from __future__ import annotations

from pydantic import BaseModel

from lingu_ray.config.tree import section_at

RENAMED = {
    "control": "controls",
    "corpus.sources.*.form": "corpus.sources.*.format",
    "evaluation.tasks.*.form": "evaluation.tasks.*.format",
}
"""Old dotted name: new one; `*` stands for the items of a list."""


def new_name(section: type[BaseModel] | None, name: str) -> str | None:
    """What the setting `name` of a section is called now: a name in the same section, or a dotted one elsewhere.

    None where the name is no old one. The section counts, wherever a command's settings hold it.
    """
    for old, new in RENAMED.items():
        (old_section, _, old_name), (new_section, _, own_name) = old.rpartition("."), new.rpartition(".")
        if old_name == name and _section(old_section) is section:
            return own_name if new_section == old_section else new
    return None


def _section(dotted: str) -> type[BaseModel] | None:
    return section_at(tuple(0 if part == "*" else part for part in dotted.split(".") if part))
