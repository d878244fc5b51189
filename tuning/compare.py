"""Runs side by side: scores, the settings that differ, curves.

python -m tuning.compare runs/demo runs/demo/controls/*      # folders, or s3://bucket/runs/mine
python -m tuning.compare runs/*                              # all runs of a folder
python -m tuning.compare 3f2a… 91bc… uri=http://mlflow:5000  # MLflow run ids
python -m tuning.compare experiment=lingu_ray                # all runs of an MLflow experiment, newest first

Prints the tables and writes `compare.html` with the curves, and beside it the scores as `compare.csv`, with all digits
and whole names of folders, and as `compare.tex` for a paper. Intervals are those of runs that are named by folder:
MLflow has none.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import jinja2
from pydantic import Field, PositiveInt
from rich.console import Console
from rich.table import Table

from lingu_ray.atomic import require_writable, write_text
from lingu_ray.config import Section
from lingu_ray.config.base import BESIDE_RUNS
from lingu_ray.config.command_line import names_and_settings
from lingu_ray.config.help_pages import Help
from lingu_ray.errors import UserError, run_command
from lingu_ray.evaluation.results import MANY_CUT_OFF
from lingu_ray.evaluation.tracking import CUT_OFF, figure_name, task_of
from lingu_ray.paths import LocalPath, TrackingUri, location
from lingu_ray.report.pages import environment, svgs
from lingu_ray.report.plots import save_panels
from lingu_ray.shell import shell_word
from tuning.compared import Compared, read_place, read_store
from tuning.curves import curve_panels
from tuning.differences import NONE, differing_settings
from tuning.score_table import BESIDE, Matrix, latex, matrix, scores_table, training_table, write_csv

PAGE = "compare.html"
USAGE = "python -m tuning.compare [RUN ...] [key=value ...]"


class CompareConfig(Section):
    """What the command can be told."""

    out: LocalPath = Field(Path("compare"), description="folder of the page")
    uri: TrackingUri | None = Field(
        None,
        description="MLflow store that run ids and experiments are in; null: $MLFLOW_TRACKING_URI, else "
        "sqlite:///runs/mlflow.db",
    )
    experiment: str | None = Field(None, description="all runs of this MLflow experiment, newest first")
    limit: PositiveInt = Field(20, description="most runs of an experiment")


HELP = Help(USAGE, __doc__, CompareConfig)


def main(arguments: list[str]) -> None:
    """Read the runs, print the tables, write the page."""
    names, options = names_and_settings(arguments, HELP)
    in_full = told_apart(read_runs(names, options))
    runs = in_short(in_full)
    require_writable(options.out / PAGE, "out")
    verdicts = Matrix(["verdict"], [[run.name, run.verdict] for run in runs if run.verdict is not None])
    tables = {"Scores": scores_table(runs), "Verdicts": verdicts, "Settings that differ": settings_table(runs)}
    tables["Training"] = training_table(runs)
    for title, table in tables.items():
        show(title, table)
    notes = [*not_of_the_end(runs), *other_items(runs), *other_engines(runs), *other_formulas(runs)]
    notes += cut_off_answers(runs)
    for note in notes:
        print(note)
    page = write_page(runs, tables, notes, options.out)
    print(f"page     {shell_word(page)}")
    as_csv, as_tex, scores = page.with_suffix(".csv"), page.with_suffix(".tex"), tables["Scores"]
    if scores.titles and scores.lines:
        write_csv(in_full, as_csv)
        write_text(as_tex, latex(scores))
        print(f"scores   {shell_word(as_csv)} {shell_word(as_tex)}")
    else:  # those that lie there are of other runs
        as_csv.unlink(missing_ok=True)
        as_tex.unlink(missing_ok=True)


def read_runs(names: list[str], options: CompareConfig) -> list[Compared]:
    """The runs by folder or MLflow id, and of the experiment; what lies beside runs, as in `runs/*`, is left out."""
    if beside := [name for name in names if Path(name).name in BESIDE_RUNS]:
        print(f"left out, as no run: {', '.join(beside)}")
        names = [name for name in names if name not in beside]
    ids = [name for name in names if not Path(name).is_dir() and location(name) is None]
    if folder := next((name for name in ids if "/" in name), None):
        raise UserError(f"{folder}: no such folder; a run is named by its folder or its MLflow id")
    runs = [read_place(location(name) or Path(name)) for name in names if name not in ids]
    if ids or options.experiment:
        runs += read_store(ids, options.uri, options.experiment, options.limit)
    if not runs:
        raise UserError(f"nothing to compare: name runs by folder or MLflow id, or give experiment=…\nusage: {USAGE}")
    return runs


def told_apart(runs: list[Compared]) -> list[Compared]:
    """The runs, numbered where several have one name."""
    total, seen = Counter(run.name for run in runs), Counter[str]()
    named = []
    for run in runs:
        seen[run.name] += 1
        named.append(replace(run, name=f"{run.name} #{seen[run.name]}") if total[run.name] > 1 else run)
    return named


def in_short(runs: list[Compared]) -> list[Compared]:
    """The runs, without the folders that all their names begin with."""
    names = [run.name.split("/") for run in runs]
    levels = zip(*(folders for *folders, _ in names), strict=False)
    shared = len([*takewhile(lambda level: len({*level}) == 1, levels)])
    return [replace(run, name="/".join(name[shared:])) for run, name in zip(runs, names, strict=True)]


def not_of_the_end(runs: list[Compared]) -> list[str]:
    """A sentence for each run that was measured, and then resumed to more steps, of which some are still to come."""
    notes = []
    for run in runs:
        step, steps = run.metrics.get("step"), run.settings.get("train.steps")
        if step and steps and step < int(steps) and any(task_of(name) for name in run.metrics):
            notes.append(
                f"{run.name}: its scores are of an earlier model, for it is at step {step:.0f} of {steps}; the command "
                "that resumes it measures it again"
            )
    return notes


def other_items(runs: list[Compared]) -> list[str]:
    """A sentence for each task whose items are not the same in all runs that tell which ones they were asked."""
    notes = []
    for task, groups in _apart({run.name: run.asked for run in runs}):
        apart = " | ".join(", ".join(names) for names in groups.values())
        notes.append(
            f"{task} was measured on different items ({apart}): its scores do not compare, nor do means with it"
        )
    return notes


def other_engines(runs: list[Compared]) -> list[str]:
    """A sentence for all tasks that the same engines measured, where these are not one in all runs that tell it."""
    tasks: dict[str, list[str]] = {}
    for task, groups in _apart({run.name: run.engines for run in runs}):
        by = " | ".join(f"{', '.join(names)}: {engine}" for engine, names in groups.items())
        tasks.setdefault(by, []).append(task)
    return [
        f"{', '.join(names)}: measured by different engines or in different precisions ({by}), which is part of any "
        "difference of scores; evaluate all with one evaluation.engine and evaluation.precision"
        for by, names in tasks.items()
    ]


def other_formulas(runs: list[Compared]) -> list[str]:
    """A sentence for each mean that is not computed in one way in all runs that have it."""
    notes = []
    for mean, groups in _apart({run.name: run.formulas for run in runs}):
        by = " | ".join(f"{', '.join(names)}: {formula}" for formula, names in groups.items())
        notes.append(f"{mean} is not computed in one way ({by}): its values do not compare")
    return notes


def cut_off_answers(runs: list[Compared]) -> list[str]:
    """A sentence for each task of which a run's model had many answers cut off."""
    notes = []
    for task in dict.fromkeys(task for run in runs for name in run.metrics if (task := task_of(name))):
        shares = {run.name: run.metrics.get(figure_name(task, CUT_OFF), 0.0) for run in runs}
        if max(shares.values()) > MANY_CUT_OFF:
            of_runs = ", ".join(f"{share:.1%} of {run}" for run, share in shares.items() if share)
            notes.append(f"{task}: answers that ended at max_new_tokens, which costs points: {of_runs}")
    return notes


def _apart(by_run: dict[str, dict[str, str]]) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """What runs have several values of, tasks or means, each with the runs' names by value."""
    for key in dict.fromkeys(key for known in by_run.values() for key in known):
        groups: dict[str, list[str]] = {}
        for run, known in by_run.items():
            if key in known:
                groups.setdefault(known[key], []).append(run)
        if len(groups) > 1:
            yield key, groups


def settings_table(runs: list[Compared]) -> Matrix:
    """The settings that are not the same in all runs. Where runs are many, what only one has is in one column.

    A model that was evaluated without a run has no settings, and is left out.
    """
    runs = [run for run in runs if run.settings]
    rows = differing_settings([run.settings for run in runs])
    shared = [row for row in rows if len(runs) <= BESIDE or row.apart is None]
    table = [("\n".join(row.keys), list(row.values)) for row in shared]
    if len(shared) < len(rows):
        own = [[" = ".join((*row.keys, row.values[i])) for row in rows if row.apart == i] for i in range(len(runs))]
        table.append(("only here", ["\n".join(lines) or NONE for lines in own]))
    return matrix(runs, table)


def show(title: str, matrix: Matrix) -> None:
    """A table on the terminal."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    for name in matrix.titles:
        table.add_column(name, overflow="fold")
    for line in matrix.lines:
        table.add_row(*line)
    console = Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False)
    console.print(table if matrix.titles and matrix.lines else f"{title}: none")


def write_page(runs: list[Compared], tables: dict[str, Matrix], notes: list[str], out: Path) -> Path:
    """`compare.html`, and the curves as PNG beside it."""
    out.mkdir(parents=True, exist_ok=True)
    panels, page = curve_panels([(run.name, run.curves) for run in runs]), out / PAGE
    picture = out / "curves.png"
    if panels:
        save_panels(panels, picture)
    else:
        picture.unlink(missing_ok=True)
    template = environment(jinja2.PackageLoader("tuning", "templates")).get_template("compare.html")
    text = template.render(count=len(runs), tables=tables, notes=notes, curves=svgs(panels))
    write_text(page, text)
    return page


if __name__ == "__main__":
    run_command(main)
