"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table_head(cells: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [f"| {' | '.join(cells)} |", f"|{'---|' * len(cells)}"]


def row_line(label: str, cells: Sequence[str]) -> str:
    """A row of a table, on one line whatever its texts hold."""
    texts = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join([label, *texts])} |"
