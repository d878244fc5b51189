"""Style, colors and panels that all figures share.

A figure is a list of `Panel`s, each with a function that draws on a matplotlib `Axes`. The same list is shown twice:

- in a page: `pages.svgs(panels)` gives one `<svg>` per panel, and the macro `figure` of `parts.html` lays them out.
  What is drawn in `INK`, `SOFT` and `LINE` (`svg.py`) takes the page's colors, light or dark; `STYLE` draws
  matplotlib's text and axes in them;
- as a PNG on white: `save_panels(panels, path)` puts them side by side. A figure that needs more, such as a grid with a
  title, draws its panels on a `canvas`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font, get_font_names
from matplotlib.text import Text

from lingu_ray.evaluation.roles import ADAPTED, DISTILLED, FINE_TUNED, ORIGINAL_VLM, PLAIN_CE, SAME_CE, TEACHER
from lingu_ray.report.svg import INK, LINE, SOFT, themed_svg

log = logging.getLogger(__name__)

# Okabe and Ito's palette, which color-blind readers can tell apart; its black is the ink, light on a dark page.
COLORS = {
    TEACHER: "#999999",
    ORIGINAL_VLM: "#CC79A7",
    FINE_TUNED: "#E69F00",
    ADAPTED: "#E69F00",  # never in one figure with the fine-tuned model: each is the baseline of its kind of run
    SAME_CE: "#0072B2",
    PLAIN_CE: "#56B4E9",
    DISTILLED: "#009E73",
}
SOURCE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK, "#999999")
NAMES = {
    TEACHER: "teacher (original LM)",
    ORIGINAL_VLM: "original VLM",
    FINE_TUNED: "fine-tuned VLM",
    ADAPTED: "adapted VLM",
    SAME_CE: "same CE, no teacher",
    PLAIN_CE: "plain CE",
    DISTILLED: "distilled",
}
_WIDE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Noto Sans JP",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Microsoft YaHei",
    "SimHei",
    "Malgun Gothic",
    "IPAexGothic",
    "PingFang SC",
    "Hiragino Sans",
    "Hiragino Sans GB",
    "Apple SD Gothic Neo",
    "Arial Unicode MS",
    "Noto Sans Thai",
)
"""Fonts with the Chinese, Japanese, Korean or Thai letters that DejaVu Sans lacks."""
FONTS = ["DejaVu Sans", *(name for name in _WIDE_FONTS if name in get_font_names())]
STYLE = {
    "font.size": 10,
    "font.family": FONTS,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.formatter.useoffset": False,  # ticks are whole numbers to read, not what is added to one
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,  # names may have a dollar sign
    "xtick.color": INK,
    "ytick.color": INK,
}
HUGE = 1e7  # larger numbers have too many digits to read
OTHERS = ("#D55E00", "#F0E442", INK)
MORE = ("#332288", "#882255", "#117733", "#AA4499", "#44AA99", "#999933", "#CC6677", "#88CCEE", "#DDCC77")
"""Paul Tol's muted colors, for models beyond those of the other palette."""


@dataclass(frozen=True)
class Panel:
    """One diagram of a figure: what it shows, in words; its size in inches; the function that draws it."""

    title: str
    size: tuple[float, float]
    draw: Callable[[Axes], None]

    def svg(self) -> str:
        """The panel alone, as an SVG element for a page."""
        with _styled(self.size) as figure:
            self.draw(figure.subplots())
            return themed_svg(figure, self.title)


def display_name(model: str) -> str:
    """A model's name, as figures and pages show it."""
    return NAMES.get(model, model)


@contextmanager
def _styled(size: tuple[float, float]) -> Iterator[Figure]:
    with style.context(["default", STYLE]), warnings.catch_warnings():  # independent of matplotlibrc and of a backend
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # it comes for each letter; `canvas` warns once
        yield Figure(figsize=size, layout="constrained")


@contextmanager
def canvas(path: Path, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure of that size in inches, in the common style; saved as a PNG on white when the block ends."""
    with _styled(size) as figure:
        yield figure
        if not _has_glyphs(figure):
            _warn_of_missing_glyphs()
        figure.savefig(path, dpi=160, facecolor="white", bbox_inches="tight", pad_inches=0.15)


def _has_glyphs(figure: Figure) -> bool:
    """Whether the fonts have a glyph for each letter of the figure's texts."""
    known = {ord("\n")}.union(*(get_font(findfont(name)).get_charmap() for name in FONTS))
    return known.issuperset(ord(letter) for text in figure.findobj(Text) for letter in text.get_text())


@cache
def _warn_of_missing_glyphs() -> None:
    """Warn once in a process that figures show boxes in place of letters."""
    log.warning(
        "figures (.png) have boxes for letters that no font here has: install one that has them, such as Noto Sans CJK "
        "for Chinese, Japanese and Korean. Pages show them in the browser's fonts"
    )


def save_panels(panels: list[Panel], path: Path) -> None:
    """Save the panels side by side as a PNG."""
    widths = [panel.size[0] for panel in panels]
    with canvas(path, (sum(widths), max(panel.size[1] for panel in panels))) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
        for axis, panel in zip(axes, panels, strict=True):
            panel.draw(axis)


def smooth(values: np.ndarray) -> np.ndarray:
    """Moving mean over a twentieth of the values; over fewer at both ends."""
    window = max(1, len(values) // 20)
    at = np.arange(len(values))
    begin, end = np.maximum(at - window // 2, 0), np.minimum(at + (window + 1) // 2, len(values))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[end] - sums[begin]) / (end - begin)


def model_colors(models: list[str]) -> dict[str, str]:
    """Each model's color: its own (`COLORS`), or the next one that no model here has."""
    own = {model: COLORS[model] for model in models if model in COLORS}
    free = cycle(color for color in dict.fromkeys((*OTHERS, *COLORS.values(), *MORE)) if color not in own.values())
    return {model: own.get(model) or next(free) for model in models}


def format_number(value: float) -> str:
    """A score that is no share: `0.83`, `38.9`, `10,742`, and a huge one as `1.3e+09`."""
    if value >= HUGE:
        return f"{value:.1e}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"
