"""Losses and validation over the steps, a panel each; together `loss.png`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lingu_ray.report.plots import COLORS, SOURCE_COLORS, Panel, display_name, smooth
from lingu_ray.report.svg import SOFT
from lingu_ray.runtime.run_folder.records import Record

SIZE = (4.4, 3.6)  # inches of a panel
LINES = ("-", "--", ":")  # of the run, and of its controls
MARKERS = "os^D"  # of the sources; the next one when all colors are used

Runs = dict[str, list[Record]]
"""Records by model: the run, and its controls."""


def loss_panels(runs: Runs) -> list[Panel]:
    """Panels of CE, KD and validation by source over the steps, as far as the run's records have them."""
    own = next(iter(runs.values()))
    panels = (
        ("Training cross-entropy", partial(_draw_training, key="ce"), any(r.get("ce") is not None for r in own)),
        ("Teacher–student divergence", partial(_draw_training, key="kd"), any(r.get("kd") is not None for r in own)),
        ("Validation cross-entropy by source", _draw_validation, any("validation" in r for r in own)),
    )
    started = {model: records for model, records in runs.items() if records}
    return [Panel(title, SIZE, partial(_draw, started, title, draw)) for title, draw, has_data in panels if has_data]


def draw_curve(axis: Axes, records: list[Record], key: str, color: str, label: str, line: str = "-") -> None:
    """Every step in a pale line, and the moving mean over it; nothing without values."""
    points = [(record["step"], record[key]) for record in records if record.get(key) is not None]
    if points:
        steps, values = np.array(points).T
        axis.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        axis.plot(steps, smooth(values), line, color=color, linewidth=1.8, label=label)


def label_axes(axis: Axes, title: str) -> None:
    """Title and axes of a diagram of nats over optimizer steps."""
    axis.set_title(title, loc="left")
    axis.set(xlabel="optimizer step", ylabel="nats per token")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.set_ylim(bottom=0)


def _draw(runs: Runs, title: str, draw: Callable[[Axes, Runs], None], axis: Axes) -> None:
    draw(axis, runs)
    label_axes(axis, title)
    axis.set_xlim(left=0)


def _draw_training(axis: Axes, runs: Runs, key: str) -> None:
    for line, (model, records) in zip(LINES, runs.items(), strict=False):
        draw_curve(axis, records, key, COLORS[model], display_name(model), line)
    if len(axis.get_legend_handles_labels()[0]) > 1:
        axis.set_ylim(top=1.25 * axis.get_ylim()[1])  # room for the legend above a flat curve
        axis.legend(loc="upper right")


def _draw_validation(axis: Axes, runs: Runs) -> None:
    records = [record for of_model in runs.values() for record in of_model if "validation" in record]
    for index, source in enumerate(sorted({source for record in records for source in record["validation"]})):
        color = SOURCE_COLORS[index % len(SOURCE_COLORS)]
        marker = MARKERS[index // len(SOURCE_COLORS) % len(MARKERS)]
        for number, of_model in enumerate(runs.values()):
            points = [(r["step"], r["validation"][source]["ce"]) for r in of_model if source in r.get("validation", {})]
            if points:
                style = {"color": color, "marker": marker, "markersize": 3, "linewidth": 1.6}
                label = source if number == 0 else None
                axis.plot(*zip(*points, strict=True), LINES[number], label=label, **style)
    for line, model in list(zip(LINES, runs, strict=False))[1:]:
        axis.plot([], [], line, color=SOFT, label=display_name(model))
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8.5)
