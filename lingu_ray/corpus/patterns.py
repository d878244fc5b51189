"""Patterns as in `glob`, for locations in buckets, and for paths without looking at the file system."""

from __future__ import annotations

import fnmatch
import glob
import itertools


def split_pattern(path: str) -> tuple[str, list[str]]:
    """The folder above the first part with a wildcard, and the parts from there on."""
    parts = path.split("/")
    plain = list(itertools.takewhile(lambda part: not glob.has_magic(part), parts))
    return "/".join(plain), parts[len(plain) :]


def is_matched(path: str, pattern: str) -> bool:
    """Whether a pattern matches a file's path or location."""
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
