"""The sweep's figures, as panels for its page and as PNG files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lingu_ray.report.plots import Panel
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.records import read_records
from tuning.curves import curve_panels, curves_of
from tuning.pareto_plot import pareto
from tuning.results import Setting
from tuning.settings_plots import heat_map, importance, parallel_coordinates
from tuning.space import Space

BEST_CURVES = 5  # settings whose curves are drawn


@dataclass(frozen=True)
class Figure:
    """A figure of the page: its file's name, title and panels, whether it takes the page's width, and a note."""

    name: str
    title: str
    panels: list[Panel]
    wide: bool = False
    note: str = ""


def sweep_figures(settings: list[Setting], space: Space, trials: Path) -> list[Figure]:
    """The figures that this sweep has enough for."""
    bars = "Bars: standard deviation over seeds, of one seed the 95% interval over items. An arrow: further out."
    hint = "Permutation importance in a random forest fitted to the trials: a hint."
    figures = [
        Figure("pareto", "Recovery and retention", pareto(settings, space), True, bars),
        Figure("curves", "As they trained", best_curves(settings, trials), True, "The first settings of the table."),
        Figure("parallel", "Parallel coordinates", parallel_coordinates(settings, space), wide=True),
        Figure("heat", "Heat map", heat_map(settings, space)),
        Figure("importance", "Importance", importance(settings, space), note=hint),
    ]
    return [figure for figure in figures if figure.panels]


def best_curves(settings: list[Setting], trials: Path) -> list[Panel]:
    """Curves of the best settings' first trials."""
    best = settings[:BEST_CURVES]
    return curve_panels(
        [(s.label, curves_of(read_records(RunFolder(trials / s.trials[0].trial).metrics))) for s in best]
    )
