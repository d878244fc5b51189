"""Text for terminals: width, wrapping, tables, and suggestions for misspelled names."""

from __future__ import annotations

import difflib
import re
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


def refolded(text: str, width: int) -> str:
    """A docstring, whose lines were filled to some 120 columns, in lines of `width`; only commands may be longer.

    A line continues the one before it if that had no room for its first word and its text begins below that one's. Text
    begins behind the first gap of a line, as in the rows of a table.
    """
    folded: list[str] = []
    before = ""
    for line in text.split("\n"):
        indent = len(line) - len(line.lstrip())
        if line and folded and indent == _column(folded[-1]) and len(f"{before} {line.split()[0]}") > 115:
            folded[-1] += f" {line.strip()}"
        else:
            folded.append(line)
        before = line
    return "\n".join(part for line in folded for part in _cut(line, width))


def _column(line: str) -> int:
    """Where the text of a line begins: behind its first gap, else behind its indentation."""
    return match.end() if (match := re.match(r" *\S+( \S+)* {2,}", line) or re.match(" *", line)) else 0


def _cut(line: str, width: int) -> list[str]:
    """A line in parts of `width`; a command stays whole, so that it can be copied."""
    if len(line) <= width or re.match(r" *(python -m|lingu-ray) ", line):
        return [line]
    return textwrap.wrap(line, width, subsequent_indent=" " * _column(line), break_on_hyphens=False)


def meant(name: str, known: Collection[str]) -> str:
    """The end of a message about an unknown name: the nearest known name, or all known names."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
