"""The figures of the experiment's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MultipleLocator, PercentFormatter

from benchmarks.result.jobs import run_folder
from benchmarks.result.seeds import CONTROLS, REFERENCES, Measured, Results, Seeds
from benchmarks.result.table import DAMAGES, DATA, NATURAL, SEEDS, Job, Size, row
from lingu_ray.evaluation.roles import DISTILLED
from lingu_ray.report.loss_plots import draw_curve, label_axes
from lingu_ray.report.plots import COLORS, SOURCE_COLORS, Panel, canvas, display_name
from lingu_ray.report.svg import INK, SOFT
from lingu_ray.runtime.controls import control_folder
from lingu_ray.runtime.run_folder.records import Record, read_records

BAR, WIDTH = 0.24, 10.5  # inches: height of a model, width of all panels
COLUMNS = 4
IN_PANELS = {DISTILLED: "KD, shared KV", "prompt_text": "KD, prompt's text"}  # clear without the page's table of rows
MEANING = {"language": "share of the lost language that came back", "vision": "share of vision that was kept"}
WHISKERS = "whiskers: standard deviation over seeds; dotted, of one seed: 95% interval over items"
VARIANTS = ("all", "language_only", "selective")  # of the paper's figure 2


def shown_name(model: str) -> str:
    """A model's name in tables and figures; the method's own is `selective` here, to tell it from its variants."""
    return "selective" if model == DISTILLED else display_name(model) if model in COLORS else model


def save_quotients(results: Results, kind: str, path: Path) -> bool:
    """Save a panel for each task that counts in the mean: recovery (language) or retention (vision) of each model.

    False where there is no such task.
    """
    tasks = {name: task.metric for name, task in results.tasks(kind) if task.in_mean}
    models = [model for model in results.models if model not in REFERENCES]
    rows = -(-len(tasks) // COLUMNS)
    if not tasks:
        return False
    with canvas(path, (WIDTH, rows * (0.8 + BAR * len(models)))) as figure:
        axes = list(figure.subplots(rows, COLUMNS, squeeze=False, sharey=True).flat)
        for axis, (name, metric) in zip(axes, tasks.items(), strict=False):
            _draw_quotients(axis, results, name, metric, models)
            axis.set_title(f"{name}, {metric.replace('_', ' ')}", loc="left", fontsize=9)
        for axis in axes[len(tasks) :]:
            axis.set_visible(False)
        figure.supxlabel(f"{MEANING[kind]}; {WHISKERS}", fontsize=9)
    return True


def _draw_quotients(axis: Axes, results: Results, name: str, metric: str, models: list[str]) -> None:
    for place, model in enumerate(reversed(models)):
        found = results.quotient(name, metric, model)
        if not found.found:
            axis.annotate("none", (0, place), va="center", fontsize=8, color=SOFT)
            continue
        axis.barh(place, found.mean, 0.72, color=COLORS.get(model, "#999999"))
        axis.hlines(place, *found.around, color=INK, linewidth=1.4, linestyle=_whisker(found))
    axis.axvline(1, color=SOFT, linewidth=0.8, linestyle=":")
    axis.set(yticks=range(len(models)), yticklabels=[IN_PANELS.get(m, shown_name(m)) for m in reversed(models)])
    axis.grid(axis="y", visible=False)
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.xaxis.set_major_locator(MultipleLocator(0.5))
    axis.tick_params(axis="x", labelsize=8)


def _whisker(found: Seeds) -> str:
    """The line style that `WHISKERS` explains: solid over seeds, dotted over items."""
    return ":" if found.is_one else "-"


def map_panel(measured: Sequence[Measured]) -> Panel:
    """Mean recovery of KD minus that of CE, by damage and kind of data."""
    title = "What the teacher adds: recovery by KD minus by CE, points"
    return Panel(title, (6.4, 3.4), partial(_draw_map, measured=measured, title=title))


def _draw_map(axis: Axes, measured: Sequence[Measured], title: str) -> None:
    damages = [damage for damage in DAMAGES if any(one.comparison.damage == damage for one in measured)]
    for index, (data, shown) in enumerate(DATA.items()):
        points = {place: _difference(measured, damage, data) for place, damage in enumerate(damages)}
        found = {place + 0.16 * (index - (len(DATA) - 1) / 2): seeds for place, seeds in points.items() if seeds.found}
        style = {"color": SOURCE_COLORS[index]}
        axis.plot(list(found), [100 * seeds.mean for seeds in found.values()], "o", label=shown, **style)
        for x, seeds in found.items():
            axis.vlines(x, *(100 * end for end in seeds.around), linewidth=1.6, linestyle=_whisker(seeds), **style)
            text, beside = f"{100 * seeds.mean:+.1f}", {"textcoords": "offset points", "va": "center"}
            axis.annotate(text, (x, 100 * seeds.mean), (7, 0), fontsize=9, **beside)
    axis.axhline(0, color=SOFT, linewidth=0.8)
    axis.set(xticks=range(len(damages)), xlim=(-0.5, len(damages) - 0.4))
    axis.set_xticklabels([f"{one} damage" for one in damages])
    axis.set_xlabel(WHISKERS, fontsize=8)
    axis.set_title(title, loc="left")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), title="data", alignment="left")


def _difference(measured: Sequence[Measured], damage: str, data: str) -> Seeds:
    results = Results.of(measured, damage, data)
    return results.ahead("recovery", results.control) if results.control else Seeds(())


def sight_panel(source: str, told: Mapping[tuple[str, str], Seeds]) -> Panel:
    """How much pictures help each model with sentences of a source; `told`: nats by cell of the map and model."""
    title = f"What pictures tell in {source}, nats a token"
    return Panel(title, (5.6, 0.9 + BAR * len(told)), partial(_draw_sight, told=told, title=title))


def _draw_sight(axis: Axes, told: Mapping[tuple[str, str], Seeds], title: str) -> None:
    labels = [f"{cell}: {shown_name(model)}" for cell, model in told]
    for place, ((_, model), seeds) in enumerate(reversed(told.items())):
        axis.barh(place, seeds.mean, 0.72, color=COLORS.get(model, "#999999"))
        axis.hlines(place, *seeds.around, color=INK, linewidth=1.4, linestyle=_whisker(seeds))
    axis.axvline(0, color=SOFT, linewidth=0.8)
    axis.set(yticks=range(len(told)), yticklabels=labels[::-1])
    axis.set_xlabel(WHISKERS, fontsize=8)
    axis.grid(axis="y", visible=False)
    axis.set_title(title, loc="left")


def curve_panels(size: Size) -> list[Panel]:
    """Cross-entropy and KD over the steps, for the paper's three variants and CE alone, with the first seed on disk."""
    for seed in SEEDS:
        if known := _curves(size, seed):
            titles = {"ce": "Training cross-entropy", "kd": "Teacher–student divergence (KD)"}
            return [
                Panel(t, (4.6, 3.4), partial(_draw_curves, runs=known, key=key, title=t)) for key, t in titles.items()
            ]
    return []


def _curves(size: Size, seed: int) -> dict[str, list[Record]]:
    """The metrics of a seed's runs by model; empty if one of the variants has not ended."""
    folders = {name: run_folder(Job(row(f"{name}_{NATURAL}"), seed, size)) for name in VARIANTS}
    if any(folder.exported_step is None for folder in folders.values()):
        return {}
    folders |= {display_name(name): control_folder(folders["selective"], name) for name in CONTROLS}
    return {name: records for name, folder in folders.items() if (records := read_records(folder.metrics))}


def _draw_curves(axis: Axes, runs: dict[str, list[Record]], key: str, title: str) -> None:
    for index, (name, records) in enumerate(runs.items()):
        draw_curve(axis, records, key, SOURCE_COLORS[index], name)
    label_axes(axis, title)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="upper right", fontsize=8.5)
