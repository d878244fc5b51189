"""Reads the text files of the public data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lingu_ray.errors import UserError

Record = dict[str, Any]


def read_text(path: Path) -> str:
    """A text file of the data.

    Raises:
        UserError: it is missing, or not UTF-8.
    """
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); benchmarks/result/README.md says where data lie") from error


def read_json_lines(path: Path) -> list[Record]:
    """The records of a JSON Lines file.

    Raises:
        UserError: the file cannot be read, or a line is no JSON; names the line.
    """
    records = []
    for number, line in enumerate(read_text(path).split("\n"), 1):  # texts may hold the breaks of `splitlines`
        try:
            records += [json.loads(line)] if line else []
        except ValueError as error:
            raise UserError(f"{path}:{number}: no JSON: {error}") from error
    return records
