"""Patterns as in `glob`, of paths and of locations, where no file system matches them."""

from __future__ import annotations

import fnmatch
import glob
import itertools


def split_pattern(path: str) -> tuple[str, list[str]]:
    """What is above the first part with a pattern in it, and the parts from there."""
    parts = path.split("/")
    plain = list(itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    return "/".join(plain), parts[len(plain) :]


def is_matched(path: str, pattern: str) -> bool:
    """Whether a file's path, or location, is one of those that a pattern matches."""
    return matches(pattern.split("/"), path.split("/"), below="**" not in pattern)


def matches(pattern: list[str], names: list[str], below: bool) -> bool:
    """Whether a path matches a pattern as in `glob`, part by part; `below`: or lies in a folder that does."""
    if not pattern:
        return below or not names
    first, *rest = pattern
    if first == "**":
        visible = itertools.takewhile(lambda name: not name.startswith("."), names)
        return any(matches(rest, names[depth:], below) for depth in range(len(list(visible)) + 1))
    hidden = bool(names) and names[0].startswith(".") and not first.startswith(".")
    return bool(names) and not hidden and fnmatch.fnmatchcase(names[0], first) and matches(rest, names[1:], below)
