"""Curves of several runs: losses and validation against the step, a panel each, and one with the runs' names."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lingu_ray.report.plots import SOURCE_COLORS, Panel, smooth
from lingu_ray.runtime.run_folder.records import Record

CURVES = {
    "loss": "Loss",
    "ce": "Training cross-entropy",
    "kd": "Teacher–student divergence",
    "validation_ce": "Validation cross-entropy",
}
SIZE = (4.2, 3.6)  # inches of a panel
APART = 20  # one run's highest value over another's, from which the axis is logarithmic, as of one that diverged
STYLES = ("-", "--", ":")  # changed when the colors begin again

Curves = dict[str, tuple[list[int], list[float]]]
"""Steps and values by name."""


def curves_of(records: list[Record]) -> Curves:
    """The curves of a run's records."""
    curves: Curves = {}
    for record in records:
        for name in CURVES:
            if record.get(name) is not None:
                steps, values = curves.setdefault(name, ([], []))
                steps.append(record["step"])
                values.append(record[name])
    return curves


def curve_panels(runs: list[tuple[str, Curves]]) -> list[Panel]:
    """A panel for each curve that one of the labeled runs has, then the legend; none where no run has a curve."""
    names = [name for name in CURVES if any(name in curves for _, curves in runs)]
    panels = [Panel(f"{CURVES[name]} by step", SIZE, partial(_draw_curve, runs=runs, name=name)) for name in names]
    drawn = [(index, label) for index, (label, curves) in enumerate(runs) if curves]
    legend = Panel("Runs by color", (SIZE[0], 0.4 + 0.2 * len(drawn)), partial(_draw_legend, runs=drawn))
    return [*panels, legend] if panels else []


def _draw_curve(axis: Axes, runs: list[tuple[str, Curves]], name: str) -> None:
    for index, (_, curves) in enumerate(runs):
        if name in curves:
            steps, values = curves[name]
            marker = "o" if name == "validation_ce" else None
            axis.plot(steps, smooth(np.array(values)), marker=marker, ms=3, lw=1.5, **_style(index))
    highest = [max(curves[name][1]) for _, curves in runs if name in curves]
    if max(highest) > APART * min(highest) > 0:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")  # the scale's own is mathematics, which labels are not read as
    axis.set_title(CURVES[name], loc="left")
    axis.set(xlabel="optimizer step", ylabel="nats per token")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))


def _draw_legend(axis: Axes, runs: list[tuple[int, str]]) -> None:
    axis.set_axis_off()
    lines = [Line2D([], [], lw=2, **_style(index)) for index, _ in runs]
    axis.legend(lines, [label for _, label in runs], loc="center left", fontsize=8.5)


def _style(index: int) -> dict[str, Any]:
    """Color and line of the run with that number."""
    row, column = divmod(index, len(SOURCE_COLORS))
    return {"color": SOURCE_COLORS[column], "linestyle": STYLES[row % len(STYLES)]}
