"""Tables of runs side by side: their scores with intervals, shown, and written for spreadsheets and papers."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lingu_ray.atomic import whole_file
from lingu_ray.evaluation.results import Estimate
from lingu_ray.evaluation.tracking import task_of
from lingu_ray.report.pages import format_score
from lingu_ray.report.plots import HUGE, format_number
from tuning.compared import MEANS, TRAINING, Compared
from tuning.differences import NONE

BESIDE = 4
"""Runs up to which each has a column; more have a line each."""

_TEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", NONE: "--"}
)


@dataclass(frozen=True)
class Matrix:
    """A table as it is shown: titles of the columns, then lines of a label and its cells."""

    titles: list[str]
    lines: list[list[str]]


def matrix(runs: list[Compared], rows: Iterable[tuple[str, list[str]]]) -> Matrix:
    """A column for each of a few runs, or a line for each of many."""
    names, rows = [run.name for run in runs], list(rows)
    if len(runs) <= BESIDE:
        return Matrix(names, [[label, *cells] for label, cells in rows])
    lines = [[name, *(cells[i] for _, cells in rows)] for i, name in enumerate(names)]
    return Matrix([label for label, _ in rows], lines)


def scores_table(runs: list[Compared]) -> Matrix:
    """The means, then the tasks' scores; shares in per cent, where a run tells that they are."""
    shares = {name for run in runs for name in run.shares}.union(MEANS)
    rows = _scores(runs).items()
    return matrix(runs, ((label, [_cell(run, name, name in shares) for run in runs]) for name, label in rows))


def training_table(runs: list[Compared]) -> Matrix:
    """What the runs' last steps and validations say."""
    found = {name for run in runs for name in run.metrics}
    rows = (name for name in TRAINING if name in found)
    return matrix(runs, ((name, [_in_four_digits(run.metrics.get(name)) for run in runs]) for name in rows))


def _scores(runs: list[Compared]) -> dict[str, str]:
    """Means and scores that a run has, by metric, with what they are called."""
    found = dict.fromkeys(name for run in runs for name in run.metrics)
    return {name: name for name in MEANS if name in found} | {name: task for name in found if (task := task_of(name))}


def _cell(run: Compared, name: str, is_share: bool) -> str:
    value, ci = run.metrics.get(name), run.intervals.get(name)
    if value is None:
        return NONE
    if ci is not None:
        return " ".join(format_score(Estimate(value, ci), is_share))
    return f"{value:z.1%}" if is_share else format_number(value)


def _in_four_digits(value: float | None) -> str:
    """A number in four digits, or whole."""
    return NONE if value is None else f"{value:,.0f}" if 1000 <= abs(value) < HUGE else f"{value:.4g}"


def write_csv(runs: list[Compared], path: Path) -> None:
    """A line a run, with all digits: each mean and score, and the ends of its interval where that is known."""
    names = _scores(runs)
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", *(f"{label}{end}" for label in names.values() for end in ("", " low", " high"))])
        for run in runs:
            found = ((run.metrics.get(name), *run.intervals.get(name, (None, None))) for name in names)
            writer.writerow([run.name, *(number for numbers in found for number in numbers)])


def latex(table: Matrix) -> str:
    """A table for a paper, in the rules of the package booktabs."""
    head, *lines = (" & ".join(map(_escaped, row)) + r" \\" for row in (["", *table.titles], *table.lines))
    begin = rf"\begin{{tabular}}{{l{'r' * len(table.titles)}}}"
    rows = [begin, r"\toprule", head, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}"]
    return "\n".join(["% needs \\usepackage{booktabs}; in brackets: 95% intervals over items", *rows, ""])


def _escaped(cell: str) -> str:
    return cell.translate(_TEX)
