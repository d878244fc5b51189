"""What a sweep leaves: `sweep.html`, its figures, `table.csv`, and `best.yaml`; all of it also in MLflow."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import jinja2

from lingu_ray.config import Config, strict_yaml
from lingu_ray.errors import UserError
from lingu_ray.evaluation.recovery_json import read_recovery
from lingu_ray.evaluation.results import TaskScores
from lingu_ray.evaluation.roles import ADAPTED, TEACHER
from lingu_ray.report.pages import embedded, environment
from lingu_ray.report.plots import format_number
from lingu_ray.runtime.folder import RunFolder
from lingu_ray.shell import shell_word
from tuning import plots
from tuning.baseline import BASELINE
from tuning.folder import SweepFolder
from tuning.outcome import all_failed, failures, read_outcomes
from tuning.progress import with_spread
from tuning.results import Setting, best_of, best_recipe, keeps_vision, settings_of, why_no_best, write_table
from tuning.space import Space
from tuning.tracking import SweepRun

_FIGURES = (
    ("pareto", "Recovery and retention", True, ""),
    ("heat", "Heat map", False, ""),
    ("parallel", "Parallel coordinates", False, ""),
    ("importance", "Importance", False, "Permutation importance in a random forest fitted to the trials: a hint."),
    ("curves", "As they trained", True, "The first settings of the table below."),
)


def write_report(space: Space, base: Config, folder: SweepFolder, tracked: SweepRun) -> Path:
    """Write the report of whatever has ended so far, log it, and say what came out; returns the page's path."""
    folder.report.mkdir(parents=True, exist_ok=True)
    outcomes = read_outcomes(folder.trials)
    settings = settings_of(outcomes, space)
    drawn = draw(settings, space, folder)
    page = folder.report / "sweep.html"
    page.write_text(render(settings, space, folder, drawn), encoding="utf-8")
    table, recipe = folder.report / "table.csv", folder.report / "best.yaml"
    write_table(settings, table)
    best = best_of(settings, space)
    recipe.unlink(missing_ok=True)
    if best is not None:
        recipe.write_text(best_recipe(best, base, space.name))
    tracked.log_figures(sweep_figures(best, settings))
    tracked.log_files(page, table, *drawn.values(), recipe)
    if not all_failed(outcomes):  # which `check_trials` tells
        print(": ".join(headline(settings, space)))
        if failed := failures(outcomes):
            print(f"failed   {len(failed)} of {len(outcomes)} trials; {failed[0].trial}: {failed[0].error}")
        how = f"python -m lingu_ray.train {shell_word(recipe)}" if best else "none, so there is no best.yaml"
        print(f"best     {how}")
    print(f"report   {shell_word(page)}")
    return page


def check_trials(folder: SweepFolder) -> None:
    """Raise a UserError where every trial of the sweep failed."""
    outcomes = read_outcomes(folder.trials)
    if not all_failed(outcomes):
        return
    first, count, name = failures(outcomes)[0], len(outcomes), folder.root.name
    what = f"all {count} trials of {name} failed, the first" if count > 1 else f"the only trial of {name} failed"
    raise UserError(
        f"{what} ({first.trial}) with: {first.error}\n"
        f"Look at {folder.traceback(first.trial)}\n"
        f"Correct the cause, remove {folder.root}, and run the command again."
    )


def sweep_figures(best: Setting | None, settings: list[Setting]) -> dict[str, float | None]:
    """The sweep's figures in MLflow."""
    trials = [trial for setting in settings for trial in setting.trials]
    counts = Counter(trial.state for trial in trials)
    figures: dict[str, float | None] = {f"trials_{state}": float(count) for state, count in counts.items()}
    for name in ("recovery", "retention"):
        figure = best.figure(name) if best else None
        figures[f"best_{name}"] = figure.mean if figure else None
    return figures


def headline(settings: list[Setting], space: Space) -> tuple[str, str]:
    """The finding in one line, in two parts."""
    best = best_of(settings, space)
    if best is None:
        return "No best setting", why_no_best(settings, space)
    recovery, retention = with_spread(best.figure("recovery"), ".1%"), with_spread(best.figure("retention"), ".1%")
    found = f"{best.label} brings back {recovery} of the lost language and keeps {retention} of vision"
    if not keeps_vision(best, space):
        return f"No setting keeps {space.min_retention:.1%} of vision", f"nearest: {found}"
    if best.exceptions:
        return "Best, but not on every task", "; ".join([found, *best.exceptions])
    return "Best", found


def draw(settings: list[Setting], space: Space, folder: SweepFolder) -> dict[str, Path]:
    """The figures that this sweep has enough for, by name."""
    paths = {name: folder.report / f"{name}.png" for name, *_ in _FIGURES}
    drawn = {
        "pareto": plots.plot_pareto(settings, space, paths["pareto"]),
        "heat": plots.plot_heat(settings, space, paths["heat"]),
        "parallel": plots.plot_parallel(settings, space, paths["parallel"]),
        "importance": plots.plot_importance(settings, space, paths["importance"]),
        "curves": plots.plot_best(settings, folder.trials, paths["curves"]),
    }
    return {name: paths[name] for name, there in drawn.items() if there}


def render(settings: list[Setting], space: Space, folder: SweepFolder, drawn: dict[str, Path]) -> str:
    """The page."""
    best = best_of(settings, space)
    outcomes = [trial for setting in settings for trial in setting.trials]
    tasks = list(dict.fromkeys(task for trial in outcomes for task in trial.scores))
    baseline = _baseline_tasks(folder)
    shares = {name: task.is_share for name, task in baseline.items()}
    counts = Counter(trial.state for trial in outcomes)
    template = environment(jinja2.PackageLoader("tuning", "templates")).get_template("sweep.html")
    return template.render(
        space=space,
        trials=len(outcomes),
        states=", ".join(f"{count} {state}" for state, count in counts.items()),
        holds=best is not None and keeps_vision(best, space),
        headline=headline(settings, space),
        unranked=[name for name in space.objectives[:1] if best is None and any(s.measured for s in settings)],
        rows=[_row(setting, space, tasks, shares) for setting in settings],
        tasks=tasks,
        reference=_reference(baseline, tasks),
        ranked=best is not None,
        failed=all_failed(outcomes),
        figures=[
            {"title": title, "wide": wide, "note": note, "data": embedded(drawn[name])}
            for name, title, wide, note in _FIGURES
            if name in drawn
        ],
        failures=sorted((t.trial, s.label, t.error) for s in settings for t in s.trials if t.state == "failed"),
        yaml=strict_yaml.dump(space),
    )


def _row(setting: Setting, space: Space, tasks: list[str], shares: dict[str, bool]) -> dict[str, Any]:
    return {
        "label": setting.label or "base",
        "seeds": len(setting.trials),
        "state": setting.state,
        "measured": setting.measured,
        "good": keeps_vision(setting, space),
        "recovery": with_spread(setting.figure("recovery"), ".1%"),
        "retention": with_spread(setting.figure("retention"), ".1%"),
        "validation": with_spread(setting.figure("validation_ce"), ".3f"),
        "scores": [with_spread(setting.score(task), ".1%" if shares.get(task, True) else ".1f") for task in tasks],
    }


def _reference(measured: dict[str, TaskScores], tasks: list[str]) -> dict[str, list[str]]:
    """The reference models' scores on the tasks; a dash where a model was not measured."""

    def score(task: str, model: str) -> str:
        if task not in measured or model not in measured[task].models:
            return "–"
        value = measured[task].models[model].score.value
        return f"{value:.1%}" if measured[task].is_share else format_number(value)

    return {model: [score(task, model) for task in tasks] for model in (TEACHER, ADAPTED)} if tasks else {}


def _baseline_tasks(folder: SweepFolder) -> dict[str, TaskScores]:
    """The tasks of the baseline's evaluation; none where it was not measured."""
    measured = read_recovery(RunFolder(folder.root / BASELINE).report)
    return measured.tasks if measured else {}
