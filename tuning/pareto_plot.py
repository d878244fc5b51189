"""What the sweep's settings bring back, and keep: recovery against retention."""

from __future__ import annotations

from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from lingu_ray.report.plots import Panel
from lingu_ray.report.svg import SOFT
from tuning.results import Setting, Stat, keeps_vision, least_shown, pareto_front
from tuning.space import Space

GOOD, POOR, FRONT = "#009E73", "#999999", "#D55E00"
NAMED = 14  # points whose settings stand beside the diagram
DIAGRAM, LETTER = 5.2, 0.065  # inches: width of the diagram, and of a letter beside it


def pareto(settings: list[Setting], space: Space) -> list[Panel]:
    """Recovery against retention, a point a setting; bars: the seeds' spread, or one's interval; line: the front."""
    ranked = [(rank, s) for rank, s in enumerate(settings, 1) if s.stat("recovery") and s.stat("retention")]
    title = "What each setting brings back, and keeps"
    letters = max((len(_label(setting)) for _, setting in ranked[:NAMED]), default=0)
    size = (DIAGRAM + LETTER * letters, 4.4)
    return [Panel(title, size, partial(_draw_pareto, title=title, ranked=ranked, space=space))] if ranked else []


def _draw_pareto(axis: Axes, title: str, ranked: list[tuple[int, Setting]], space: Space) -> None:
    offset: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8}
    lowest = tuple(map(least_shown, zip(*(_point(setting) for _, setting in ranked), strict=True)))
    front = [_shown(setting, lowest) for setting in pareto_front([setting for _, setting in ranked])]
    axis.plot(*zip(*sorted(front), strict=True), "-", color=FRONT, lw=1, zorder=0)
    for line, (rank, setting) in enumerate(ranked):
        point, shown = _point(setting), _shown(setting, lowest)
        color = GOOD if keeps_vision(setting, space) else POOR
        if point == shown:
            recovery, retention = setting.stat("recovery"), setting.stat("retention")
            assert recovery is not None and retention is not None
            bars = {"xerr": _bar(recovery), "yerr": _bar(retention), "ecolor": SOFT, "elinewidth": 1}
            axis.errorbar(*point, fmt="o", color=color, markersize=6, **bars)
        else:  # further to the left, or further down
            axis.plot(*shown, "<" if point[0] < shown[0] else "v", color=color, markersize=8)
        if line < NAMED:  # a number at the point, and beside the diagram what it stands for
            axis.annotate(f"{rank}", shown, (5, 4), **offset)
            axis.text(
                1.03, 1 - 0.065 * line, f"{rank}  {_label(setting)}", transform=axis.transAxes, va="top", fontsize=8
            )
    axis.axhline(space.min_retention, color=SOFT, linestyle="--", linewidth=1)
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "color": SOFT}
    axis.annotate(f"constraint: {space.min_retention:.1%}", (0.005, space.min_retention), (0, 3), **place, **offset)
    axis.margins(0.12)
    axis.set(xlabel="language recovery →", ylabel="vision retention →")
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    axis.set_title(title, loc="left")


def _bar(stat: Stat) -> Any:
    """How far a bar reaches to both sides; None for no bar."""
    if stat.ci is None:
        return stat.spread
    low, high = stat.ci
    return [[max(0.0, stat.mean - low)], [max(0.0, high - stat.mean)]]


def _label(setting: Setting) -> str:
    return setting.label or "base"


def _shown(setting: Setting, lowest: tuple[float, ...]) -> tuple[float, float]:
    """Where a setting is drawn: at the edge, where it lies beyond (`least_shown`)."""
    recovery, retention = _point(setting)
    return max(recovery, lowest[0]), max(retention, lowest[1])


def _point(setting: Setting) -> tuple[float, float]:
    recovery, retention = setting.stat("recovery"), setting.stat("retention")
    assert recovery is not None and retention is not None
    return recovery.mean, retention.mean
