"""The models' scores with their intervals, a panel per task; together `recovery.png`."""

from __future__ import annotations

import math
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from lingu_ray.evaluation.results import PERPLEXITY, Recovery, TaskScores
from lingu_ray.report.plots import HUGE, Panel, canvas, display_name, format_number, model_colors
from lingu_ray.report.svg import INK, SOFT

SIZE = (3.1, 3.4)  # inches of a panel of few models
BAR = 0.5  # inches of a model's bar, and of the number above it
COLUMNS = 4  # panels in a row; more where there are more than 4 × 4
TITLE_POINTS = 12
TITLE_CHARACTERS = 11  # characters of the title in an inch
NAME_POINTS = 190  # largest width of a task's name above its panel
METRICS = {"acc": "accuracy ↑", "acc_norm": "accuracy by character ↑", "perplexity": "perplexity ↓, log scale"}
ABOVE: dict[str, Any] = {"textcoords": "offset points", "va": "bottom"}  # places a text some points above


def recovery_panels(result: Recovery) -> list[Panel]:
    """A panel per task: the models' scores with 95% intervals, and recovery or retention above them."""
    models = result.measured
    return [
        Panel(
            f"Scores on {name} by model",
            (_width(models), SIZE[1]),
            partial(_draw_task, name=name, task=task, models=models),
        )
        for name, task in result.tasks.items()
    ]


def _width(models: list[str]) -> float:
    """Inches of a panel with these models."""
    return max(SIZE[0], BAR * len(models))


def plot_recovery(result: Recovery, path: Path) -> None:
    """Save the panels of all tasks in a grid, with the verdict as title and the models as legend."""
    panels, models = recovery_panels(result), result.measured
    rows = -(-len(panels) // max(COLUMNS, math.ceil(math.sqrt(len(panels)))))
    columns = -(-len(panels) // rows)  # rows of about equal length
    width = max(_width(models) * columns, 4.4)
    title = textwrap.wrap(result.verdict.text, int(TITLE_CHARACTERS * width))
    labels = [*map(display_name, models), "95% interval over items"]
    legend_rows = -(-len(labels) * 1.9 // width)
    with canvas(path, (width, SIZE[1] * rows + 0.2 + 0.2 * len(title) + 0.22 * legend_rows)) as figure:
        figure.set_layout_engine("constrained", h_pad=0.1)
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for axis, panel in zip(axes.flat, panels, strict=False):
            panel.draw(axis)
        figure.suptitle("\n".join(title), x=0.012, ha="left", fontsize=TITLE_POINTS)
        handles = [Rectangle((0, 0), 1, 1, color=color) for color in model_colors(models).values()]
        handles += [Line2D([], [], color=INK, linewidth=1.4)]
        figure.legend(handles, labels, loc="outside lower center", ncols=math.ceil(len(labels) / legend_rows))


def _draw_task(axis: Axes, name: str, task: TaskScores, models: list[str]) -> None:
    perplexity = task.metric == PERPLEXITY
    colors = model_colors(models)
    tops = []
    for x, model in enumerate(models):
        if model not in task.models:
            axis.annotate("not\nmeasured", (x, 0), (0, 4), **ABOVE, ha="center", fontsize=8, color=SOFT)
            continue
        found = task.models[model].score
        # Perplexities span orders of magnitude, so bars show the logarithm, which starts at 0.
        score, low, high = (np.log10(v) if perplexity else v for v in (found.value, *found.ci))
        axis.bar(x, score, 0.74, color=colors[model])
        axis.vlines(x, low, high, color=INK, linewidth=1.4)
        tops.append(max(high, score))
        label = f"{found.value:.1%}" if task.is_share else format_number(found.value)
        axis.annotate(label, (x, tops[-1]), (0, 3), **ABOVE, ha="center", fontsize=9)
    axis.set(xticks=[], xlim=(-0.6, len(models) - 0.4), ylim=(0, max(tops) * 1.12 or 1))
    if perplexity:
        top = int(max(tops) * 1.12)
        axis.set_yticks(range(0, top + 1, max(1, top // 6)))
        readable = math.log10(HUGE)
        axis.yaxis.set_major_formatter(lambda power, _: f"{10**power:,.0f}" if power < readable else f"1e{power:.0f}")
    elif task.is_share:
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    unit = f"{_metric(task)}, {task.items:,} items"
    size = min(10.5, NAME_POINTS / (0.7 * len(name)))  # the width of a bold letter is about 0.7 of its size
    axis.annotate(name, (0, 1), (0, 34), **ABOVE, xycoords="axes fraction", fontsize=size, fontweight="bold")
    axis.annotate(_quotient(task), (0, 1), (0, 20), **ABOVE, xycoords="axes fraction", fontsize=9)
    axis.annotate(unit, (0, 1), (0, 7), **ABOVE, xycoords="axes fraction", fontsize=8.5, color=SOFT)


def _metric(task: TaskScores) -> str:
    arrow = "↑" if task.higher_is_better else "↓"
    return METRICS.get(task.metric, f"{task.metric.replace('_', ' ')} {arrow}")


def _quotient(task: TaskScores) -> str:
    return f"{task.quotient_name}{f' {task.distilled.percent(task.digits)}' if task.distilled else ': none'}"
