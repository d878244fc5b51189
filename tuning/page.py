"""The sweep's page: figures, the table of settings beside the reference models, failures, and the space."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jinja2

from lingu_ray.config import strict_yaml
from lingu_ray.evaluation.recovery_json import read_recovery
from lingu_ray.evaluation.results import TaskScores
from lingu_ray.evaluation.roles import ADAPTED, TEACHER
from lingu_ray.report.pages import environment, svgs
from lingu_ray.report.plots import format_number
from lingu_ray.runtime.run_folder.folder import RunFolder
from tuning.baseline import BASELINE
from tuning.figures import Figure
from tuning.folder import SweepFolder
from tuning.outcome import all_failed
from tuning.results import Setting, best_of, headline, keeps_vision, read_too_high, seeds_in_words, with_spread
from tuning.space import Space


def sweep_page(settings: list[Setting], space: Space, folder: SweepFolder, figures: list[Figure]) -> str:
    """The page as HTML, complete in itself."""
    best = best_of(settings, space)
    outcomes = [trial for setting in settings for trial in setting.trials]
    tasks = list(dict.fromkeys(task for trial in outcomes for task in trial.scores))
    baseline = _baseline_tasks(folder)
    shares = {name: task.is_share for name, task in baseline.items()}
    counts = Counter(trial.state for trial in outcomes)
    pages = environment(jinja2.PackageLoader("tuning", "templates"))
    pages.filters["svgs"] = svgs
    return pages.get_template("sweep.html").render(
        space=space,
        trials=len(outcomes),
        states=", ".join(f"{count} {state}" for state, count in counts.items()),
        holds=best is not None and keeps_vision(best, space),
        headline=headline(settings, space),
        too_high=read_too_high(settings, space),
        unranked=[name for name in space.objectives[:1] if best is None and any(s.measured for s in settings)],
        rows=[_row(setting, space, tasks, shares) for setting in settings],
        tasks=tasks,
        reference=_reference(baseline, tasks),
        ranked=best is not None,
        failed=all_failed(outcomes),
        figures=figures,
        failures=sorted((t.trial, s.label, t.error) for s in settings for t in s.trials if t.state == "failed"),
        yaml=strict_yaml.dump(space),
    )


def _row(setting: Setting, space: Space, tasks: list[str], shares: dict[str, bool]) -> dict[str, Any]:
    return {
        "label": setting.label or "base",
        "seeds": seeds_in_words(setting, space),
        "state": setting.state,
        "trials": " ".join(trial.trial for trial in setting.trials),
        "measured": setting.measured,
        "good": keeps_vision(setting, space),
        "recovery": with_spread(setting.stat("recovery"), ".1%"),
        "retention": with_spread(setting.stat("retention"), ".1%"),
        "validation": with_spread(setting.stat("validation_ce"), ".3f"),
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
