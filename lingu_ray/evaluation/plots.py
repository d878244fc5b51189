"""The report's figures: what training did (`loss.png`) and what came back (`recovery.png`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lingu_ray.evaluation.recovery import ADAPTED, CE_ONLY, DISTILLED, TEACHER, percent

Record = dict[str, Any]

# Okabe and Ito's palette, told apart by the colour-blind too.
COLOURS = {TEACHER: "#999999", ADAPTED: "#E69F00", CE_ONLY: "#56B4E9", DISTILLED: "#009E73"}
SOURCE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
NAMES = {TEACHER: "teacher (original LM)", ADAPTED: "adapted VLM", CE_ONLY: "CE only", DISTILLED: "distilled"}
STYLE = {
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
}
OTHERS = ("#CC79A7", "#0072B2", "#D55E00", "#F0E442", "#000000")
SOFT = "#666666"
UNITS = {"acc": "accuracy ↑", "perplexity": "perplexity ↓, log scale"}
ABOVE: dict[str, Any] = {"textcoords": "offset points", "va": "bottom"}  # a text so many points above a place
COLUMNS = 4  # tasks beside each other


def display_name(model: str) -> str:
    """A model's name for people."""
    return NAMES.get(model, model)


@contextmanager
def canvas(path: Path, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure of that size, inches, in the house's style; saved at the end."""
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=size, layout="constrained")
        try:
            yield figure
            figure.savefig(path, dpi=160, facecolor="white", bbox_inches="tight", pad_inches=0.15)
        finally:
            plt.close(figure)


def plot_loss(records: list[Record], control: list[Record], path: Path) -> bool:
    """CE, KD and validation by source against the step, the control's dashed; False where there is nothing to draw."""
    if not records:
        return False
    panels = [
        (title, draw)
        for title, draw, there in (
            ("Training cross-entropy", _draw_ce, any(r.get("ce") is not None for r in records)),
            ("Teacher–student divergence", _draw_kd, any(r.get("kd") is not None for r in records)),
            ("Validation cross-entropy by source", _draw_validation, any("validation" in r for r in records)),
        )
        if there
    ]
    if not panels:
        return False
    with canvas(path, (4.4 * len(panels), 3.6)) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)
        for axis, (title, draw) in zip(axes[0], panels, strict=True):
            draw(axis, records, control)
            axis.set_title(title, loc="left")
            axis.set_xlabel("optimiser step")
            axis.set_ylabel("nats per token")
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axis.set_ylim(bottom=0)
            axis.set_xlim(left=0)
    return True


def _series(records: list[Record], key: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(r["step"], r[key]) for r in records if r.get(key) is not None]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps), np.array(values, dtype=float)


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a window of a twentieth of the run, shorter at its ends."""
    window = max(1, len(values) // 20)
    sums = np.convolve(values, np.ones(window), mode="same")
    return sums / np.convolve(np.ones(len(values)), np.ones(window), mode="same")


def _draw_curve(axis: Axes, records: list[Record], key: str, model: str, line: str) -> None:
    steps, values = _series(records, key)
    if len(steps):
        axis.plot(steps, values, color=COLOURS[model], alpha=0.25, linewidth=0.8)
        axis.plot(steps, smooth(values), line, color=COLOURS[model], linewidth=1.8, label=display_name(model))


def _draw_ce(axis: Axes, records: list[Record], control: list[Record]) -> None:
    _draw_curve(axis, records, "ce", DISTILLED, "-")
    _draw_curve(axis, control, "ce", CE_ONLY, "--")
    if control:
        axis.legend(loc="upper right")


def _draw_kd(axis: Axes, records: list[Record], control: list[Record]) -> None:
    _draw_curve(axis, records, "kd", DISTILLED, "-")


def _draw_validation(axis: Axes, records: list[Record], control: list[Record]) -> None:
    sources = sorted({source for r in records for source in r.get("validation", {})})
    for index, source in enumerate(sources):
        colour = SOURCE_COLOURS[index % len(SOURCE_COLOURS)]
        for of_model, line, label in ((records, "o-", source), (control, "o--", None)):
            points = [(r["step"], r["validation"][source]["ce"]) for r in of_model if source in r.get("validation", {})]
            if points:
                axis.plot(*zip(*points, strict=True), line, color=colour, markersize=3, linewidth=1.6, label=label)
    if control:
        axis.plot([], [], "--", color="#666666", label="CE only")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8.5)


def plot_recovery(result: dict[str, Any], path: Path) -> None:
    """One panel a task: the models' scores with 95% intervals, recovery or retention above; the finding as title."""
    tasks = result["tasks"]
    models = models_of(result)
    columns = min(COLUMNS, len(tasks))
    rows = -(-len(tasks) // columns)
    with canvas(path, (max(3.1 * columns, 7.0), 3.6 * rows + 0.8)) as figure:
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat[len(tasks) :]:
            axis.set_visible(False)
        for axis, (name, task) in zip(axes.flat, tasks.items(), strict=False):
            _draw_task(axis, name, task, models)
        figure.suptitle(finding(result["summary"]), x=0.012, ha="left", fontsize=13, fontweight="bold")
        handles = [Rectangle((0, 0), 1, 1, color=_colour(model, models)) for model in models]
        figure.legend(handles, [display_name(m) for m in models], loc="outside lower center", ncols=len(models))


def _colour(model: str, models: list[str]) -> str:
    """The model's own, or the next of those for others."""
    others = [one for one in models if one not in COLOURS]
    return COLOURS.get(model) or OTHERS[others.index(model) % len(OTHERS)]


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
    tops = []
    for x, model in enumerate(models):
        if model not in task["models"]:
            axis.annotate("not\nmeasured", (x, 0), (0, 4), **ABOVE, ha="center", fontsize=8, color=SOFT)
            continue
        entry = task["models"][model]
        # A perplexity spans orders of magnitude: bars of its logarithm, which has a 0 to start from.
        score, low, high = (np.log10(v) if perplexity else v for v in (entry["score"], *entry["ci"]))
        axis.bar(x, score, 0.74, color=_colour(model, models))
        axis.vlines(x, low, high, color="#333333", linewidth=1.4)
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
    axis.annotate(name, (0, 1), (0, 34), **ABOVE, xycoords="axes fraction", fontsize=10.5, fontweight="bold")
    axis.annotate(_quotient(task), (0, 1), (0, 20), **ABOVE, xycoords="axes fraction", fontsize=9)
    axis.annotate(unit, (0, 1), (0, 7), **ABOVE, xycoords="axes fraction", fontsize=8.5, color=SOFT)


def _unit(task: dict[str, Any]) -> str:
    arrow = "↑" if task["higher_is_better"] else "↓"
    return UNITS.get(task["metric"], f"{task['metric'].replace('_', ' ')} {arrow}")


def _quotient(task: dict[str, Any]) -> str:
    kind, digits = ("recovery", 0) if task["kind"] == "language" else ("retention", 1)
    return f"{kind}: none" if task[kind] is None else f"{kind} {percent(task[kind], task[f'{kind}_ci'], digits)}"


def format_number(value: float) -> str:
    """A score that is no share, three digits or whole: `0.83`, `38.9`, `10,742`."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def models_of(result: dict[str, Any]) -> list[str]:
    """All models of a result: the four of the method in their order, then others."""
    found = {model for task in result["tasks"].values() for model in task["models"]}
    return [model for model in NAMES if model in found] + sorted(found - set(NAMES))
