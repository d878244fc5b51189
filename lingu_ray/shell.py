"""Paths and commands as a shell takes them, so that what is printed can be copied and run."""

from __future__ import annotations

import shlex
from pathlib import Path

from lingu_ray.paths import absolute, tracking_uri


def shell_word(value: Path | str) -> str:
    """One word of a command: paths and SQLite addresses are made absolute, and what a shell would split is quoted.

    Any other string (a hub id, the address of a server) stays as it is, up to quotes.
    """
    if isinstance(value, str) and value.startswith("sqlite:///"):
        value = tracking_uri(value)
    return shlex.quote(str(absolute(value)) if isinstance(value, Path) else value)


def model_word(name: str, model: str) -> str:
    """`name=model` as one word: a model that is a local file or folder is made absolute, a hub id stays."""
    return shell_word(f"{name}={absolute(model) if Path(model).exists() else model}")
