"""What a sweep leaves: `sweep.html`, its figures, `table.csv`, and `best.yaml`; all of it also in MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from lingu_ray.atomic import write_text
from lingu_ray.config import Config
from lingu_ray.errors import UserError
from lingu_ray.report.plots import save_panels
from lingu_ray.shell import shell_word
from lingu_ray.storage import origin
from tuning.figures import sweep_figures
from tuning.folder import SweepFolder
from tuning.kept_models import trained_model
from tuning.outcome import Outcome, State, all_failed, failures, read_outcomes
from tuning.page import sweep_page
from tuning.results import Setting, best_of, best_recipe, headline, read_too_high, settings_of, write_table
from tuning.space import Space
from tuning.tracking import SweepRun


def write_report(space: Space, base: Config, folder: SweepFolder, tracked: SweepRun) -> Path:
    """Write the report of whatever has ended so far, log it, and print what came out; returns the page's path."""
    outcomes = read_outcomes(folder.trials)
    files = write_files(space, base, folder, outcomes)
    settings = settings_of(outcomes, space)
    best = best_of(settings, space)
    tracked.log_figures(sweep_metrics(best, outcomes))
    tracked.log_files(*files)
    page, recipe = files[0], folder.recipe
    if not all_failed(outcomes):  # which `check_trials` tells
        print(": ".join(headline(settings, space)))
        if warning := read_too_high(settings, space):
            print(warning)
        print_failures(outcomes)
        how = f"python -m lingu_ray.train {shell_word(origin(recipe))}" if best else "none, so there is no best.yaml"
        print(f"best     {how}")
        if best and (model := trained_model(best, space, folder.trials)):
            print(f"model    {shell_word(origin(model))}")
    print(f"report   {shell_word(origin(page))}")
    return page


def write_files(space: Space, base: Config, folder: SweepFolder, outcomes: list[Outcome]) -> list[Path]:
    """Write the report's files; returns them, the page first. `best.yaml` is there where there is a best setting."""
    folder.report.mkdir(parents=True, exist_ok=True)
    settings = settings_of(outcomes, space)
    best = best_of(settings, space)
    figures = sweep_figures(settings, space, folder.trials)
    pictures = [folder.report / f"{figure.name}.png" for figure in figures]
    for figure, picture in zip(figures, pictures, strict=True):
        save_panels(figure.panels, picture)
    page, table = folder.report / "sweep.html", folder.report / "table.csv"
    write_text(page, sweep_page(settings, space, folder, figures))
    write_table(settings, table)
    folder.recipe.unlink(missing_ok=True)
    if best is not None:
        write_text(folder.recipe, best_recipe(best, base, space, read_too_high(settings, space)))
    return [page, table, *pictures, folder.recipe]


def print_failures(outcomes: list[Outcome]) -> None:
    """Say how many trials failed, and why the first did."""
    if failed := failures(outcomes):
        first = f"{failed[0].trial}: {failed[0].error}"
        print(f"failed   {len(failed)} of {len(outcomes)} trials; the same command starts them again. {first}")


def check_trials(folder: SweepFolder) -> None:
    """Raise a UserError where every trial of the sweep failed."""
    outcomes = read_outcomes(folder.trials)
    if not all_failed(outcomes):
        return
    first, count, name = failures(outcomes)[0], len(outcomes), folder.root.name
    what = f"all {count} trials of {name} failed, the first" if count > 1 else f"the only trial of {name} failed"
    raise UserError(
        f"{what} ({first.trial}) with: {first.error}\n"
        f"Look at {origin(folder.traceback(first.trial))}\n"
        "Correct the cause and run the same command again: it starts failed trials again."
    )


def sweep_metrics(best: Setting | None, outcomes: list[Outcome]) -> dict[str, float | None]:
    """The sweep's metrics in MLflow: how many trials are in which state, and the best setting's scores."""
    states = [outcome.state for outcome in outcomes]
    metrics: dict[str, float | None] = {f"trials_{state}": float(states.count(state)) for state in get_args(State)}
    for name in ("recovery", "retention"):
        stat = best.stat(name) if best else None
        metrics[f"best_{name}"] = stat.mean if stat else None
    return metrics
