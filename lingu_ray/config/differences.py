"""The differences between two trees of settings, a line for each."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatch
from typing import Any

from lingu_ray.config import strict_yaml


def differences(before: object, now: object, ignored: Collection[str], key: str = "") -> list[str]:
    """One line with key and both values for each setting that differs.

    `ignored`: patterns of dotted keys (`fnmatch`). Items of a list are matched by their `name`, else by position.
    """
    if any(fnmatch(key, pattern) for pattern in ignored):
        return []
    old, new = _parts(before), _parts(now)
    if old is None or new is None:
        return [] if before == now else [f"{key}: {short(before)} before, {short(now)} now"]
    lines: list[str] = []
    for name in old | new:
        lines += differences(old.get(name), new.get(name), ignored, f"{key}.{name}" if key else name)
    return lines


def _parts(tree: object) -> dict[str, Any] | None:
    """The parts of a tree by name; None for a plain value, or a list of plain values."""
    if isinstance(tree, list) and tree and all(isinstance(item, dict) for item in tree):
        return {str(item.get("name", position)): item for position, item in enumerate(tree)}
    return tree if isinstance(tree, dict) and tree else None


def short(value: object) -> str:
    """A value as YAML in one line, cut where it is long."""
    text = strict_yaml.dump(value, inline=True)
    return text if len(text) < 80 else text[:77] + "..."
