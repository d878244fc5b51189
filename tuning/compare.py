"""Runs side by side: the settings that differ, the figures, the curves.

python -m tuning.compare runs/demo runs/demo/control         # folders
python -m tuning.compare 3f2a… 91bc… uri=http://mlflow:5000  # MLflow run ids
python -m tuning.compare experiment=lingu_ray                # all runs of an MLflow experiment, newest first

Prints the table and writes `compare.html` with the curves.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import mlflow
from mlflow.exceptions import MlflowException
from pydantic import Field, PositiveInt
from rich.console import Console
from rich.table import Table

from lingu_ray.cli import load_yaml, read_settings, split_arguments
from lingu_ray.config import Section
from lingu_ray.errors import UserError, run_command
from lingu_ray.evaluation.report import embedded, environment
from lingu_ray.help_pages import Help
from lingu_ray.paths import LocalPath, TrackingUri
from lingu_ray.runtime.folder import RunFolder
from lingu_ray.runtime.metrics import read_records
from lingu_ray.runtime.tracking import dotted
from lingu_ray.shell import shell_word
from tuning.curves import CURVES, Curves, curves_of, plot_curves

FIGURES = ("recovery", "retention", "validation_ce", "loss", "ce", "kd", "tokens_per_s")
USAGE = "python -m tuning.compare [RUN ...] [key=value ...]"
_NOT_COMPARED = ("name", "output_dir", "tracking.", "corpus.cache_dir", "resume")


class CompareConfig(Section):
    """What the command can be told."""

    out: LocalPath = Field(Path("compare"), description="folder of the page")
    uri: TrackingUri = Field("sqlite:///runs/mlflow.db", description="MLflow store that run ids and experiments are in")
    experiment: str | None = Field(None, description="all runs of this MLflow experiment, newest first")
    limit: PositiveInt = Field(20, description="most runs of an experiment")


HELP = Help(USAGE, __doc__, CompareConfig)


@dataclass(frozen=True)
class Compared:
    """One run: flat settings, the last figure of each kind, and curves as (steps, values)."""

    name: str
    settings: dict[str, str]
    figures: dict[str, float]
    curves: Curves = field(default_factory=dict)


def main(arguments: list[str]) -> None:
    """Read the runs, print the table, write the page."""
    names, given, _ = split_arguments(arguments, HELP)
    options = read_settings(given, CompareConfig)
    runs = read_runs(names, options)
    differing = differences(runs)
    show(runs, differing)
    page = write_page(runs, differing, options.out)
    print(f"page     {shell_word(page)}")


def read_runs(names: list[str], options: CompareConfig) -> list[Compared]:
    """The runs by folder or MLflow id, and those of the experiment."""
    ids = [name for name in names if not Path(name).is_dir()]
    runs = [read_folder(Path(name)) for name in names if Path(name).is_dir()]
    if ids or options.experiment:
        runs += _from_mlflow(ids, options)
    if not runs:
        raise UserError(f"nothing to compare: name runs by folder or MLflow id, or give experiment=…\nusage: {USAGE}")
    return runs


def read_folder(path: Path) -> Compared:
    """A run's folder."""
    folder = RunFolder(path)
    if not folder.config.exists():
        raise UserError(f"{path}: no run lies there (no config.yaml)")
    settings = {key: str(value) for key, value in dotted(load_yaml(folder.config).model_dump(mode="json"))}
    records = read_records(folder.metrics)
    figures = {name: record[name] for record in records for name in FIGURES if record.get(name) is not None}  # the last
    return Compared(str(path), settings, figures | _measured(folder), curves_of(records))


def _measured(folder: RunFolder) -> dict[str, float]:
    path = folder.report / "recovery.json"
    if not path.exists():
        return {}
    result = json.loads(path.read_text())
    own = "distilled" if any("distilled" in task["models"] for task in result["tasks"].values()) else "ce_only"
    scores = {name: task["models"][own]["score"] for name, task in result["tasks"].items() if own in task["models"]}
    summary = {name: result["summary"][name] for name in ("recovery", "retention")}
    return {name: value for name, value in (summary | scores).items() if value is not None}


def _from_mlflow(ids: list[str], options: CompareConfig) -> list[Compared]:
    uri = options.uri
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise UserError(f"uri={uri}: no such MLflow store; run ids and experiments are looked up there")
    client = mlflow.MlflowClient(uri)
    try:
        runs = [client.get_run(run_id) for run_id in ids]
        if options.experiment:
            experiment = client.get_experiment_by_name(options.experiment)
            if experiment is None:
                known = ", ".join(found.name for found in client.search_experiments())
                raise UserError(f"experiment={options.experiment}: {uri} has {known or 'no experiments'}")
            found = client.search_runs([experiment.experiment_id], max_results=options.limit)
            runs += [run for run in found if "train.steps" in run.data.params]  # a sweep's own run trains nothing
    except MlflowException as error:
        raise UserError(f"uri={uri}: {error}") from error
    return [_from_run(client, run) for run in runs]


def _from_run(client: mlflow.MlflowClient, run: Any) -> Compared:
    curves = {}
    for name in CURVES:
        points = sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name))
        if points:
            curves[name] = ([step for step, _ in points], [value for _, value in points])
    return Compared(run.info.run_name, dict(run.data.params), dict(run.data.metrics), curves)


def differences(runs: list[Compared]) -> list[str]:
    """Settings that are not the same in all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    compared = [key for key in keys if not key.startswith(_NOT_COMPARED)]
    return [key for key in compared if len({run.settings.get(key) for run in runs}) > 1]


def figure_names(runs: list[Compared]) -> list[str]:
    """The figures to show: those every run is known for first, then scores of tasks."""
    found = dict.fromkeys(name for run in runs for name in run.figures)
    tasks = [name for name in found if name not in FIGURES and not _is_trace(name)]
    return [name for name in FIGURES if name in found] + tasks


def _is_trace(name: str) -> bool:
    """Metrics of every step that tell little at the end."""
    return name.startswith(("system/", "validation_ce.")) or name in (
        *("lr", "grad_norm", "temperature", "w_ce", "w_kd", "tokens"),
        *("data_wait", "teacher_wait", "step_s"),
    )


def show(runs: list[Compared], differing: list[str]) -> None:
    """The table on the terminal: a column a run."""
    table = Table(title="Runs side by side")
    table.add_column("", no_wrap=True)
    for run in runs:
        table.add_column(run.name, overflow="fold")
    for key in differing:
        table.add_row(key, *(run.settings.get(key, "–") for run in runs))
    table.add_section()
    for name in figure_names(runs):
        table.add_row(name, *(_cell(run.figures.get(name)) for run in runs))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def write_page(runs: list[Compared], differing: list[str], out: Path) -> Path:
    """`compare.html`, and the curves as PNG beside it."""
    out.mkdir(parents=True, exist_ok=True)
    curves, page = out / "curves.png", out / "compare.html"
    drawn = plot_curves([(run.name, run.curves) for run in runs], curves)
    template = environment(jinja2.PackageLoader("tuning", "templates")).get_template("compare.html")
    page.write_text(
        template.render(
            runs=[run.name for run in runs],
            settings=[(key, [run.settings.get(key, "–") for run in runs]) for key in differing],
            figures=[(name, [_cell(run.figures.get(name)) for run in runs]) for name in figure_names(runs)],
            curves=embedded(curves) if drawn else None,
        ),
        encoding="utf-8",
    )
    return page


if __name__ == "__main__":
    run_command(main)
