"""Text for terminals: width, wrapping, tables, and suggestions for misspelled names."""

from __future__ import annotations

import difflib
import shutil
import sys
import textwrap
from collections.abc import Collection, Mapping
from io import TextIOWrapper


def text_width() -> int:
    """Width of text in columns: that of the terminal, between 80 and 140."""
    return min(max(shutil.get_terminal_size((120, 0)).columns, 80), 140)


def print_file(text: str) -> None:
    """Print text that will be saved to a file: in UTF-8, whatever the terminal's encoding."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    print(text)


def table(lines: Mapping[str, str], width: int) -> list[str]:
    """A table of indented names, with the text of each wrapped beside it."""
    column = max(map(len, lines)) + 4
    rows = []
    for name, text in lines.items():
        rows += wrapped(f"  {name:<{column - 2}}", text, width)
    return rows


def wrapped(head: str, text: str, width: int) -> list[str]:
    """A text to the right of `head`, wrapped in its own column."""
    first, *more = textwrap.wrap(text, width - len(head), break_on_hyphens=False) or [""]
    return [head + first, *(" " * len(head) + line for line in more)]


def meant(name: str, known: Collection[str]) -> str:
    """The end of a message about an unknown name: the nearest known name, or all known names."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
