"""The sweep's figures, each a PNG: Pareto front, heat map, parallel coordinates, importance, the best trials' curves.

A function draws its figure where the sweep has what it needs, and says whether it did.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from lingu_ray.report.plots import canvas
from lingu_ray.runtime.folder import RunFolder
from lingu_ray.runtime.records import read_records
from tuning.curves import curves_of, plot_curves
from tuning.results import Setting, brief, keeps_vision, pareto_front, short
from tuning.space import CASE, Space

GOOD, POOR, FRONT = "#009E73", "#999999", "#D55E00"
HEAT = ("distill.temperature", "distill.w_kd")
BEST_CURVES = 5
READABLE = {"boxstyle": "round,pad=0.25", "facecolor": "white", "alpha": 0.85, "linewidth": 0}  # on any color
_LABELLED = 14


def plot_pareto(settings: list[Setting], space: Space, path: Path) -> bool:
    """Recovery against retention, a point a setting; bars are the seeds' spread, the line is the front."""
    points = [(rank, s, s.figure("recovery"), s.figure("retention")) for rank, s in enumerate(settings, 1)]
    measured = [(rank, s, recovery, retention) for rank, s, recovery, retention in points if recovery and retention]
    if not measured:
        return False
    front = pareto_front(settings)
    on_front = sorted((a.mean, b.mean) for _, s, a, b in measured if s in front)
    with canvas(path, (7.2, 4.4)) as figure:
        axis = figure.subplots()
        axis.plot(*zip(*on_front, strict=True), "-", color=FRONT, lw=1, zorder=0)
        for line, (rank, setting, recovery, retention) in enumerate(measured):
            axis.errorbar(
                recovery.mean,
                retention.mean,
                xerr=recovery.spread,
                yerr=retention.spread,
                fmt="o",
                color=GOOD if keeps_vision(setting, space) else POOR,
                ecolor="#bbbbbb",
                markersize=6,
                elinewidth=1,
            )
            if line < _LABELLED:
                _label(axis, line, f"{rank}", setting.label or "base", (recovery.mean, retention.mean))
        axis.axhline(space.min_retention, color="#666666", linestyle="--", linewidth=1)
        axis.annotate(
            f"constraint: {space.min_retention:.1%}",
            (0.005, space.min_retention),
            (0, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=8,
            color="#666666",
        )
        axis.margins(0.12)
        axis.set(xlabel="language recovery →", ylabel="vision retention →")
        axis.xaxis.set_major_formatter(PercentFormatter(1))
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        axis.set_title("What each setting brings back, and keeps", loc="left")
    return True


def _label(axis: Axes, line: int, number: str, text: str, at: tuple[float, float]) -> None:
    """A number at the point, and beside the figure what it stands for: whole labels would lie one over another."""
    axis.annotate(number, at, (5, 4), textcoords="offset points", fontsize=8, color="#444444")
    axis.text(1.03, 1 - 0.065 * line, f"{number}  {text}", transform=axis.transAxes, va="top", fontsize=8)


def plot_heat(settings: list[Setting], space: Space, path: Path) -> bool:
    """The objective over τ and w_kd, where both were searched (else over the first two numbers that were)."""
    numeric = [key for key in searched_keys(settings) if all(_is_number(s.values.get(key)) for s in settings)]
    keys = HEAT if set(HEAT) <= set(numeric) else tuple(numeric[:2])
    measured, z = _measured(settings, space)
    if len(keys) < 2 or len(measured) < 3:
        return False
    x, y = (np.array([s.values[key] for s in measured], dtype=float) for key in keys)
    with canvas(path, (5.6, 4.4)) as figure:
        axis = figure.subplots()
        columns, rows = np.unique(x), np.unique(y)
        if len(columns) * len(rows) <= 2 * len(z) and min(len(columns), len(rows)) > 1:
            image = _tiles(axis, columns, rows, x, y, z)
        else:
            image = axis.scatter(x, y, c=z, s=90, cmap="viridis", edgecolors="white")
            for which, values in (("x", x), ("y", y)):
                if values.min() > 0 and values.max() / values.min() > 8:
                    getattr(axis, f"set_{which}scale")("log")
        axis.grid(False)
        axis.set(xlabel=short(keys[0]), ylabel=short(keys[1]))
        figure.colorbar(image, ax=axis, format=PercentFormatter(1), label=space.objectives[0])
        axis.set_title(f"{space.objectives[0].capitalize()} over {short(keys[0])} and {short(keys[1])}", loc="left")
    return True


def _tiles(axis: Axes, columns: Any, rows: Any, x: Any, y: Any, z: Any) -> Any:
    """A tile for each pair of listed values: the mean over whatever else was searched."""
    grid = np.full((len(rows), len(columns)), np.nan)
    for row, below in enumerate(rows):
        for column, left in enumerate(columns):
            here = z[(x == left) & (y == below)]
            if len(here):
                grid[row, column] = here.mean()
                axis.text(column, row, f"{here.mean():.0%}", ha="center", va="center", fontsize=9, bbox=READABLE)
    image = axis.imshow(grid, origin="lower", cmap="viridis", aspect="auto")
    axis.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
    axis.set_yticks(range(len(rows)), [f"{value:g}" for value in rows])
    return image


def plot_parallel(settings: list[Setting], space: Space, path: Path) -> bool:
    """A line a setting through what was searched, colored by the objective."""
    import matplotlib.pyplot as plt

    keys = searched_keys(settings)
    measured, z = _measured(settings, space)
    if len(keys) < 2 or len(measured) < 2:
        return False
    shade = plt.Normalize(z.min(), z.max())
    axes = [_axis_places([_value(s, key) for s in measured]) for key in keys]
    with canvas(path, (1.7 * (len(keys) + 1) + 1.5, 4.2)) as figure:
        axis = figure.subplots()
        last = shade(z)
        for index in np.argsort(z):
            heights = [places[index] for places, _ in axes] + [last[index]]
            axis.plot(range(len(heights)), heights, color=plt.cm.viridis(shade(z[index])), linewidth=1.6, alpha=0.85)
        for place, (_, ticks) in enumerate(axes):
            for height, text in ticks:
                axis.annotate(text, (place, height), (-4, 0), textcoords="offset points", ha="right", fontsize=8)
        for height in (0.0, 0.5, 1.0):
            text = f"{z.min() + height * (z.max() - z.min()):.0%}"
            axis.annotate(text, (len(keys), height), (5, 0), textcoords="offset points", va="center", fontsize=8)
        for place in range(len(keys) + 1):
            axis.axvline(place, color="#666666", linewidth=1)
        axis.set_xticks(range(len(keys) + 1), [*(short(key) for key in keys), space.objectives[0]])
        axis.set(yticks=[], xlim=(-0.5, len(keys) + 0.4))
        axis.grid(False)
        axis.spines[["left", "bottom"]].set_visible(False)
        axis.set_title("Which settings lead where", loc="left")
    return True


def _axis_places(values: list[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights from 0 to 1 on an axis, and its ticks: numbers by size (or its logarithm), others in order."""
    if all(_is_number(value) for value in values) and len(set(values)) > 1:
        numbers = np.array(values, dtype=float)
        decades = numbers.min() > 0 and numbers.max() / numbers.min() > 8
        scaled = np.log(numbers) if decades else numbers
        places = (scaled - scaled.min()) / (scaled.max() - scaled.min())
        by_height = dict(sorted(zip(places.tolist(), values, strict=True)))
        chosen = by_height if len(by_height) <= 6 else {h: by_height[h] for h in (min(by_height), max(by_height))}
        return places.tolist(), [(height, f"{value:.3g}") for height, value in chosen.items()]
    names = list(dict.fromkeys(brief(value) for value in values))
    heights = {name: index / max(1, len(names) - 1) for index, name in enumerate(names)}
    return [heights[brief(value)] for value in values], [(height, name) for name, height in heights.items()]


def plot_importance(settings: list[Setting], space: Space, path: Path) -> bool:
    """How much the objective hangs on each setting: permutation importance in a random forest over all trials."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    keys = searched_keys(settings)
    trials = [(s, t) for s in settings for t in s.trials if getattr(t, space.objectives[0]) is not None]
    if len(keys) < 2 or len(trials) < 8:
        return False
    columns = [_axis_places([_value(s, key) for s, _ in trials])[0] for key in keys]
    features, target = np.array(columns).T, np.array([getattr(t, space.objectives[0]) for _, t in trials])
    forest = RandomForestRegressor(300, min_samples_leaf=2, random_state=0).fit(features, target)
    found: Any = permutation_importance(forest, features, target, n_repeats=20, random_state=0)
    order = np.argsort(found.importances_mean)
    with canvas(path, (5.6, 1.2 + 0.4 * len(keys))) as figure:
        axis = figure.subplots()
        means, spreads = found.importances_mean[order], found.importances_std[order]
        axis.barh([short(keys[i]) for i in order], means, xerr=spreads, color=GOOD, ecolor="#bbbbbb")
        axis.set_xlabel(f"loss of R² of {space.objectives[0]} when shuffled ({len(trials)} trials)")
        axis.grid(axis="x")
        axis.set_title("What matters", loc="left")
    return True


def plot_best(settings: list[Setting], trials: Path, path: Path) -> bool:
    """Curves of the best settings' first trials."""
    chosen = [(s.label, curves_of(read_records(RunFolder(trials / s.trials[0].trial).metrics))) for s in settings]
    return plot_curves(chosen[:BEST_CURVES], path)


def searched_keys(settings: list[Setting]) -> list[str]:
    """Keys whose value differs between settings, and `case` where there are several."""
    keys = list(dict.fromkeys(key for setting in settings for key in setting.values))
    differing = [key for key in keys if len({brief(setting.values.get(key)) for setting in settings}) > 1]
    cases = {setting.case for setting in settings}
    return ([CASE] if len(cases) > 1 else []) + differing


def _measured(settings: list[Setting], space: Space) -> tuple[list[Setting], np.ndarray]:
    """The settings whose objective is known, and its means."""
    pairs = [(setting, found.mean) for setting in settings if (found := setting.figure(space.objectives[0]))]
    return [setting for setting, _ in pairs], np.array([mean for _, mean in pairs])


def _value(setting: Setting, key: str) -> Any:
    return setting.case if key == CASE else setting.values.get(key)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
