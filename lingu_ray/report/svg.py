"""Figures as SVG elements of a page, in the page's light or dark colors."""

from __future__ import annotations

import io
import re
from html import escape

from matplotlib import rc_context
from matplotlib.figure import Figure

INK, SOFT, LINE = "#1c2024", "#5b6570", "#dfe3e8"
"""The colors of text, of secondary text, and of rules, as in the page's light mode (`page.css`)."""

_OF_THE_PAGE = {INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)"}
_REFERENCE = re.compile(r'#([\w-]+)[")]')
_ID = re.compile(r' id="([\w-]+)"')


def themed_svg(figure: Figure, label: str) -> str:
    """The figure as an `<svg>` element with a transparent background, real text, and `label` as its accessible name.

    Unused identifiers are left out, and the others are hashes of what they name, so that a page can hold several
    figures.
    """
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "lingu_ray"}):
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", pad_inches=0.08)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans'")
    for color, variable in _OF_THE_PAGE.items():
        text = text.replace(color, variable)
    referred = set(_REFERENCE.findall(text))
    text = _ID.sub(lambda found: found[0] if found[1] in referred else "", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
