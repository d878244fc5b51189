"""What came back: the models' scores with their intervals, a panel a task; together `recovery.png`."""

from __future__ import annotations

import math
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from lingu_ray.evaluation.recovery import percent
from lingu_ray.report.plots import Panel, canvas, display_name, format_number, model_colors, models_of
from lingu_ray.report.svg import INK, SOFT

SIZE = (3.1, 3.4)  # inches of a panel
COLUMNS = 4  # panels beside each other, as long as they are not more than its square
NAME_POINTS = 190  # width that a task's name may have above its panel
UNITS = {"acc": "accuracy ↑", "perplexity": "perplexity ↓, log scale"}
ABOVE: dict[str, Any] = {"textcoords": "offset points", "va": "bottom"}  # a text so many points above a place


def recovery_panels(result: dict[str, Any]) -> list[Panel]:
    """A panel a task: the models' scores with 95% intervals, recovery or retention above."""
    models = models_of(result)
    return [
        Panel(f"Scores on {name} by model", SIZE, partial(_draw_task, name=name, task=task, models=models))
        for name, task in result["tasks"].items()
    ]


def plot_recovery(result: dict[str, Any], path: Path) -> None:
    """The panels of all tasks in a grid, the finding as title, the models as legend."""
    panels, models = recovery_panels(result), models_of(result)
    columns = min(len(panels), max(COLUMNS, math.ceil(math.sqrt(len(panels)))))
    rows = -(-len(panels) // columns)
    width = max(SIZE[0] * columns, 4.4)
    title = textwrap.wrap(finding(result["summary"]), int(9 * width))
    legend_rows = -(-len(models) * 1.9 // width)
    with canvas(path, (width, SIZE[1] * rows + 0.2 + 0.22 * (len(title) + legend_rows))) as figure:
        figure.set_layout_engine("constrained", h_pad=0.1)
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for axis, panel in zip(axes.flat, panels, strict=False):
            panel.draw(axis)
        figure.suptitle("\n".join(title), x=0.012, ha="left", fontsize=13, fontweight="bold")
        handles = [Rectangle((0, 0), 1, 1, color=color) for color in model_colors(models).values()]
        labels = [display_name(model) for model in models]
        figure.legend(handles, labels, loc="outside lower center", ncols=math.ceil(len(models) / legend_rows))


def finding(summary: dict[str, Any]) -> str:
    """The figure's title: recovery and retention in words."""
    parts = []
    if summary["recovery"] is not None:
        parts.append(f"{summary['recovery']:.0%} of the lost language is back")
        if summary["ce_only"]:
            parts[0] += f" ({summary['ce_only']['recovery']:.0%} with CE only)"
    if summary["retention"] is not None:
        parts.append(f"{summary['retention']:.1%} of vision is kept")
    return ", ".join(parts) or "Scores by model"


def _draw_task(axis: Axes, name: str, task: dict[str, Any], models: list[str]) -> None:
    perplexity = task["metric"] == "perplexity"
    colors = model_colors(models)
    tops = []
    for x, model in enumerate(models):
        if model not in task["models"]:
            axis.annotate("not\nmeasured", (x, 0), (0, 4), **ABOVE, ha="center", fontsize=8, color=SOFT)
            continue
        entry = task["models"][model]
        # A perplexity spans orders of magnitude: bars of its logarithm, which has a 0 to start from.
        score, low, high = (np.log10(v) if perplexity else v for v in (entry["score"], *entry["ci"]))
        axis.bar(x, score, 0.74, color=colors[model])
        axis.vlines(x, low, high, color=INK, linewidth=1.4)
        tops.append(max(high, score))
        label = format_number(entry["score"]) if not task["share"] else f"{entry['score']:.1%}"
        axis.annotate(label, (x, tops[-1]), (0, 3), **ABOVE, ha="center", fontsize=9)
    axis.set(xticks=[], xlim=(-0.6, len(models) - 0.4), ylim=(0, max(tops) * 1.12 or 1))
    if perplexity:
        axis.set_yticks(range(int(max(tops) * 1.12) + 1))
        axis.yaxis.set_major_formatter(lambda power, _: f"{10**power:,.0f}")
    elif task["share"]:
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    unit = f"{_unit(task)}, {task['n']:,} items"
    size = min(10.5, NAME_POINTS / (0.7 * len(name)))  # a bold letter is some 0.7 of its size wide
    axis.annotate(name, (0, 1), (0, 34), **ABOVE, xycoords="axes fraction", fontsize=size, fontweight="bold")
    axis.annotate(_quotient(task), (0, 1), (0, 20), **ABOVE, xycoords="axes fraction", fontsize=9)
    axis.annotate(unit, (0, 1), (0, 7), **ABOVE, xycoords="axes fraction", fontsize=8.5, color=SOFT)


def _unit(task: dict[str, Any]) -> str:
    arrow = "↑" if task["higher_is_better"] else "↓"
    return UNITS.get(task["metric"], f"{task['metric'].replace('_', ' ')} {arrow}")


def _quotient(task: dict[str, Any]) -> str:
    kind, digits = ("recovery", 0) if task["kind"] == "language" else ("retention", 1)
    return f"{kind}: none" if task[kind] is None else f"{kind} {percent(task[kind], task[f'{kind}_ci'], digits)}"
