"""How the objective depends on the settings that were searched: heat map, parallel coordinates, importance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.ticker import LogLocator, PercentFormatter

from lingu_ray.report.plots import Panel
from lingu_ray.report.svg import SOFT
from tuning.results import Setting, brief, least_shown, short_names
from tuning.space import CASE, Space

HEAT = ("distill.temperature", "distill.w_kd")
BAR = "#009E73"
SHADES = ListedColormap(colormaps["viridis"](np.linspace(0.25, 0.9, 256)))  # without the ends that a page swallows
READABLE = {"boxstyle": "round,pad=0.25", "facecolor": "white", "alpha": 0.85, "linewidth": 0}  # on any color
OFFSET: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8}


def heat_map(settings: list[Setting], space: Space) -> list[Panel]:
    """The objective over τ and w_kd, where both were searched (else over the first two numbers that were)."""
    numeric = [key for key in searched_keys(settings) if all(_is_number(s.values.get(key)) for s in settings)]
    keys = HEAT if set(HEAT) <= set(numeric) else tuple(numeric[:2])
    measured, z = _measured(settings, space)
    if len(keys) < 2 or len(measured) < 3:
        return []
    x, y = (np.array([s.values[key] for s in measured], dtype=float) for key in keys)
    short = short_names(keys)
    names = (short[keys[0]], short[keys[1]], space.objectives[0])
    title = f"{names[2].capitalize()} over {names[0]} and {names[1]}"
    return [Panel(title, (5.6, 4.4), partial(_draw_heat, title=title, names=names, x=x, y=y, z=z))]


def _draw_heat(axis: Axes, title: str, names: tuple[str, str, str], x: Any, y: Any, z: Any) -> None:
    columns, rows = np.unique(x), np.unique(y)
    if len(columns) * len(rows) <= 2 * len(z) and min(len(columns), len(rows)) > 1:
        image = _tiles(axis, columns, rows, x, y, z)
    else:
        image = axis.scatter(x, y, c=z, s=90, cmap="viridis", edgecolors="white")
        for side, set_scale, values in ((axis.xaxis, axis.set_xscale, x), (axis.yaxis, axis.set_yscale, y)):
            if _spans_decades(values):
                set_scale("log", subs=[])
                side.set_major_locator(LogLocator(subs=(1, 2, 5)))
                side.set_major_formatter("{x:g}")  # the scale's own is mathematics, which labels are not read as
    axis.grid(False)
    axis.set(xlabel=names[0], ylabel=names[1])
    lowest = least_shown(z)
    image.set_clim(vmin=lowest)
    below = "min" if z.min() < lowest else "neither"
    axis.figure.colorbar(image, ax=axis, format=PercentFormatter(1), label=names[2], extend=below)
    axis.set_title(title, loc="left")


def _tiles(axis: Axes, columns: Any, rows: Any, x: Any, y: Any, z: Any) -> Any:
    """A tile for each pair of listed values: the mean over whatever else was searched."""
    grid = np.full((len(rows), len(columns)), np.nan)
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9, "color": "black", "bbox": READABLE}
    for row, below in enumerate(rows):
        for column, left in enumerate(columns):
            here = z[(x == left) & (y == below)]
            if len(here):
                grid[row, column] = here.mean()
                axis.text(column, row, f"{here.mean():.0%}", **style)
    image = axis.imshow(grid, origin="lower", cmap="viridis", aspect="auto")
    axis.set_xticks(range(len(columns)), [f"{value:g}" for value in columns])
    axis.set_yticks(range(len(rows)), [f"{value:g}" for value in rows])
    return image


def parallel_coordinates(settings: list[Setting], space: Space) -> list[Panel]:
    """A line a setting through what was searched, colored by the objective."""
    keys = searched_keys(settings)
    measured, z = _measured(settings, space)
    if len(keys) < 2 or len(measured) < 2:
        return []
    title, size = "Which settings lead where", (1.7 * (len(keys) + 1) + 1.5, 4.2)
    scales = [_scale([_value(s, key) for s in measured]) for key in keys]
    names = [*short_names(keys).values(), space.objectives[0]]
    return [Panel(title, size, partial(_draw_parallel, title=title, names=names, scales=scales, z=z))]


def _draw_parallel(axis: Axes, title: str, names: list[str], scales: list[Scale], z: np.ndarray) -> None:
    lowest = least_shown(z)
    shade = Normalize(lowest, z.max(), clip=True)
    for index in np.argsort(z):
        heights = [scale.heights[index] for scale in scales] + [shade(z[index])]
        axis.plot(range(len(names)), heights, color=SHADES(shade(z[index])), linewidth=1.6, alpha=0.85)
    for place, scale in enumerate(scales):
        for height, text in scale.ticks:
            axis.annotate(text, (place, height), (-4, 0), ha="right", **OFFSET)
    last = len(names) - 1
    for height in (0.0, 0.5, 1.0):
        below = "≤ " if not height and z.min() < lowest else ""
        text = f"{below}{lowest + height * (z.max() - lowest):.0%}"
        axis.annotate(text, (last, height), (5, 0), va="center", **OFFSET)
    for place in range(len(names)):
        axis.axvline(place, color=SOFT, linewidth=1)
    axis.set_xticks(range(len(names)), names)
    axis.set(yticks=[], xlim=(-0.5, last + 0.4))
    axis.grid(False)
    axis.spines[["left", "bottom"]].set_visible(False)
    axis.set_title(title, loc="left")


@dataclass(frozen=True)
class Scale:
    """Where values stand on an axis of height 1, in their order, and its ticks as (height, text)."""

    heights: list[float]
    ticks: list[tuple[float, str]]


def _scale(values: list[Any]) -> Scale:
    """Numbers by size (or its logarithm), others in order."""
    if all(_is_number(value) for value in values) and len(set(values)) > 1:
        numbers = np.array(values, dtype=float)
        scaled = np.log(numbers) if _spans_decades(numbers) else numbers
        heights = (scaled - scaled.min()) / (scaled.max() - scaled.min())
        by_height = dict(sorted(zip(heights.tolist(), values, strict=True)))
        chosen = by_height if len(by_height) <= 6 else {h: by_height[h] for h in (min(by_height), max(by_height))}
        return Scale(heights.tolist(), [(height, f"{value:.3g}") for height, value in chosen.items()])
    kinds = {repr(value): brief(value) for value in values}
    places = {kind: index / max(1, len(kinds) - 1) for index, kind in enumerate(kinds)}
    return Scale([places[repr(value)] for value in values], [(places[kind], name) for kind, name in kinds.items()])


def importance(settings: list[Setting], space: Space) -> list[Panel]:
    """How much the objective hangs on each setting: permutation importance in a random forest over all trials."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    keys, objective = searched_keys(settings), space.objectives[0]
    trials = [(s, t) for s in settings for t in s.trials if getattr(t, objective) is not None]
    if len(keys) < 2 or len(trials) < 8:
        return []
    columns = [_scale([_value(s, key) for s, _ in trials]).heights for key in keys]
    features, target = np.array(columns).T, np.array([getattr(t, objective) for _, t in trials])
    target = np.maximum(target, least_shown(target))
    forest = RandomForestRegressor(300, min_samples_leaf=2, random_state=0).fit(features, target)
    found: Any = permutation_importance(forest, features, target, n_repeats=20, random_state=0)
    order = np.argsort(found.importances_mean)
    short = short_names(keys)
    names = [short[keys[i]] for i in order]
    bars = partial(_draw_bars, names=names, means=found.importances_mean[order], spreads=found.importances_std[order])
    label = f"loss of R² of {objective} when shuffled ({len(trials)} trials)"
    return [Panel("What matters", (5.6, 1.2 + 0.4 * len(keys)), partial(bars, title="What matters", label=label))]


def _draw_bars(axis: Axes, title: str, label: str, names: list[str], means: Any, spreads: Any) -> None:
    axis.barh(names, means, xerr=spreads, color=BAR, ecolor=SOFT)
    axis.set_xlabel(label)
    axis.grid(axis="x")
    axis.set_title(title, loc="left")


def searched_keys(settings: list[Setting]) -> list[str]:
    """Keys whose value differs between settings, and `case` where there are several."""
    keys = list(dict.fromkeys(key for setting in settings for key in setting.values))
    differing = [key for key in keys if len({repr(setting.values.get(key)) for setting in settings}) > 1]
    cases = {setting.case for setting in settings}
    return ([CASE] if len(cases) > 1 else []) + differing


def _measured(settings: list[Setting], space: Space) -> tuple[list[Setting], np.ndarray]:
    """The settings whose objective is known, and its means."""
    pairs = [(setting, found.mean) for setting in settings if (found := setting.stat(space.objectives[0]))]
    return [setting for setting, _ in pairs], np.array([mean for _, mean in pairs])


def _value(setting: Setting, key: str) -> Any:
    return setting.case if key == CASE else setting.values.get(key)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _spans_decades(values: np.ndarray) -> bool:
    return bool(values.min() > 0 and values.max() / values.min() > 8)
