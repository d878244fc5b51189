"""Curves of several runs in one figure: losses and validation against the step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from lingu_ray.report.plots import SOURCE_COLORS, canvas, smooth
from lingu_ray.runtime.records import Record

CURVES = {
    "loss": "Loss",
    "ce": "Training cross-entropy",
    "kd": "Teacher–student divergence",
    "validation_ce": "Validation cross-entropy",
}
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


def plot_curves(runs: list[tuple[str, Curves]], path: Path) -> bool:
    """A panel for each curve that one of the labeled runs has; False where none has any."""
    names = [name for name in CURVES if any(name in curves for _, curves in runs)]
    if not names:
        return False
    with canvas(path, (4.2 * len(names), 3.6)) as figure:
        for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            for index, (label, curves) in enumerate(runs):
                if name in curves:
                    steps, values = curves[name]
                    row, column = divmod(index, len(SOURCE_COLORS))
                    style = ("-", "--", ":")[row % 3] + ("o" if name == "validation_ce" else "")
                    color = SOURCE_COLORS[column]
                    axis.plot(steps, smooth(np.array(values)), style, ms=3, lw=1.5, color=color, label=label)
            axis.set_title(CURVES[name], loc="left")
            axis.set(xlabel="optimizer step")
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        figure.axes[0].set_ylabel("nats per token")
        drawn = [zip(*axis.get_legend_handles_labels(), strict=True) for axis in figure.axes]
        lines = {label: line for pairs in drawn for line, label in pairs}  # a run may lack the first panel's curve
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=min(4, len(runs)))
    return True
