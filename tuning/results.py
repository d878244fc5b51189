"""The sweep's table: each setting once, over its seeds; ranked, best first."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lingu_ray.config import Config, strict_yaml
from lingu_ray.config.command_line import to_yaml
from tuning.outcome import Outcome, all_failed, failures
from tuning.space import Space, Values, configure

_LEAST_SPAN = 0.05
"""How far below the median figures reach at least, whatever the best one is."""


@dataclass(frozen=True)
class Stat:
    """Mean over seeds, and their standard deviation; of one seed None, and its interval over items if it has one."""

    mean: float
    spread: float | None
    ci: tuple[float, float] | None = None


@dataclass(frozen=True)
class Setting:
    """One setting with the trials that ran it: one a seed, or several where the same values were drawn again.

    `values`: those searched; what the case brings along is left out. `digits`: of numbers in its label.
    """

    case: str | None
    values: Values
    trials: tuple[Outcome, ...]
    digits: int = 3

    def stat(self, name: str) -> Stat | None:
        """A number of the outcomes, by its name there, over the seeds that have it."""
        found = self._over_seeds([(trial.seed, getattr(trial, name)) for trial in self.trials])
        if found is None or found.spread is not None:
            return found
        ci = next(getattr(trial, f"{name}_ci", None) for trial in self.trials if getattr(trial, name) is not None)
        return replace(found, ci=None if ci is None else tuple(ci))

    def score(self, task: str) -> Stat | None:
        """A task's score over the seeds that were measured."""
        return self._over_seeds([(trial.seed, trial.scores.get(task)) for trial in self.trials])

    @staticmethod
    def _over_seeds(found: list[tuple[int, float | None]]) -> Stat | None:
        """Over one value a seed, its first one: a seed that ran twice with the same values has nothing new to tell.

        What is not a number, as the validation of a model that diverged, is none.
        """
        known = {seed: value for seed, value in reversed(found) if value is not None and math.isfinite(value)}
        values = list(known.values())
        if not values:
            return None
        return Stat(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)

    def seeds(self, objective: str) -> int:
        """How many seeds have a value of the objective; where it has none at all, how many were measured."""
        known = {trial.seed for trial in self.trials if getattr(trial, objective) is not None}
        return len(known or {trial.seed for trial in self.trials if trial.scores})

    def has_ended(self, seeds: int) -> bool:
        """Whether so many seeds, all there are, have come to their end, so that its numbers stay what they are."""
        return len({trial.seed for trial in self.trials}) >= seeds and all(trial.has_ended for trial in self.trials)

    @property
    def exceptions(self) -> list[str]:
        """What its trials' verdicts say of single tasks; with the trials' names where there are several."""
        several = len(self.trials) > 1
        return [f"{t.trial}, {said}" if several else said for t in self.trials for said in t.exceptions]

    @property
    def measured(self) -> bool:
        """Whether a trial's model was evaluated."""
        return any(trial.scores for trial in self.trials)

    @property
    def state(self) -> str:
        """What its trials came to: `finished`, or how many of each."""
        states = [trial.state for trial in self.trials]
        if len(set(states)) == 1:
            return states[0]
        return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))

    @property
    def label(self) -> str:
        """The setting in words, as short as it goes: its case, and what was searched beside it."""
        names = short_names(self.values)
        searched = [f"{names[key]}={brief(value, self.digits)}" for key, value in self.values.items()]
        return " ".join([*([self.case] if self.case is not None else []), *searched])


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Each dotted key by as few of its last parts as tell it from the others; `lr.decoder` of a learning rate."""
    keys = list(keys)

    def name(key: str) -> str:
        parts = key.split(".")
        least = 2 if parts[-2:-1] == ["learning_rates"] else 1
        tails = (".".join(parts[-count:]) for count in range(least, len(parts)))
        return next((tail for tail in tails if sum(f".{other}".endswith(f".{tail}") for other in keys) == 1), key)

    return {key: name(key).replace("learning_rates.", "lr.") for key in keys}


def brief(value: Any, digits: int = 3) -> str:
    """A value in few characters; a schedule in steps as its values, with where they begin unless that is evenly."""
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    if isinstance(value, list) and value and all(isinstance(point, list) for point in value):
        evenly = all(begin == place / len(value) for place, (begin, _) in enumerate(value))
        return "→".join(
            f"{held:.{digits}g}" if evenly or not begin else f"{held:.{digits}g}@{begin:.{digits}g}"
            for begin, held in value
        )
    return strict_yaml.dump(value, inline=True)


def settings_of(outcomes: list[Outcome], space: Space) -> list[Setting]:
    """The settings that ran, best first."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(repr((outcome.case, sorted(outcome.values.items(), key=str))), []).append(outcome)
    settings = [Setting(group[0].case, _searched(group[0], space), tuple(group)) for group in groups.values()]
    return sorted(_told_apart(settings), key=lambda setting: rank(setting, space))


def _told_apart(settings: list[Setting]) -> list[Setting]:
    """The settings with as many digits in their labels as differ: three, or more where draws are close."""
    ways = ([replace(setting, digits=digits) for setting in settings] for digits in range(3, 10))
    return max(ways, key=lambda way: len({setting.label for setting in way}))


def _searched(outcome: Outcome, space: Space) -> Values:
    """The values apart from those that the case brings along."""
    of_case = space.cases.get(outcome.case, {}) if outcome.case is not None else {}
    return {key: value for key, value in outcome.values.items() if key not in of_case}


def is_complete(setting: Setting, space: Space) -> bool:
    """Whether no seed is missing in its means."""
    return setting.seeds(space.objectives[0]) >= space.seeds


def seeds_in_words(setting: Setting, space: Space) -> str:
    """How many seeds its means are of: `3`, or `1 of 3` where some failed, were stopped early or are still to come."""
    count = setting.seeds(space.objectives[0])
    return f"{count}" if is_complete(setting, space) else f"{count} of {space.seeds}"


def keeps_vision(setting: Setting, space: Space) -> bool:
    """Whether the constraint holds, on the mean over seeds."""
    retention = setting.stat("retention")
    return retention is None or retention.mean >= space.min_retention


def rank(setting: Setting, space: Space) -> tuple[Any, ...]:
    """Sort key: settings that keep vision by the objective, then the others by retention.

    By validation come those without the objective: measured ones that keep vision, other measured ones, the unmeasured.
    Both with and without it, settings that lack no seed come before those that do. Among equal ones, as few items give,
    the other mean decides, then validation.
    """
    objective, retention = setting.stat(space.objectives[0]), setting.stat("retention")
    incomplete, good = not is_complete(setting, space), keeps_vision(setting, space)
    stat = setting.stat("validation_ce")
    validation = stat.mean if stat else math.inf
    if objective is None:
        group = 2 if not setting.measured else 0 if good else 1
        return (1, incomplete, group, validation)
    recovery = setting.stat("recovery")
    means = [-stat.mean if stat else math.inf for stat in (objective if good else retention, recovery, retention)]
    return (0, incomplete, 0 if good else 1, *means, validation)


def pareto_front(settings: list[Setting]) -> list[Setting]:
    """Settings that no other one beats in recovery without losing retention, by rising recovery."""
    points = [(s, s.stat("recovery"), s.stat("retention")) for s in settings]
    measured = [(s, a.mean, b.mean) for s, a, b in points if a is not None and b is not None]
    front = [
        (s, a)
        for s, a, b in measured
        if not any(other >= a and kept >= b and (other, kept) != (a, b) for _, other, kept in measured)
    ]
    return [s for s, _ in sorted(front, key=lambda pair: pair[1])]


def least_shown(values: Iterable[float]) -> float:
    """The value from which figures show an objective: the least one, but at most three times as far below the median as
    the best one is above it.

    What lies further down, as of a trial that diverged, is drawn there: on its scale the others would look alike.
    """
    known = list(values)
    middle = statistics.median(known)
    return max(min(known), middle - max(3 * (max(known) - middle), _LEAST_SPAN))


def best_of(settings: list[Setting], space: Space) -> Setting | None:
    """The best setting; None where no trial has a value of the objective (see `why_no_best`)."""
    return next((s for s in settings if s.stat(space.objectives[0])), None)


def why_no_best(settings: list[Setting], space: Space) -> str:
    """What keeps a sweep from having a best setting, in one line."""
    trials = [trial for setting in settings for trial in setting.trials]
    measured = [trial for trial in trials if trial.scores]
    if all_failed(trials):
        return f"every trial failed, the first with: {failures(trials)[0].error}"
    if not measured:
        return "no trial was measured"
    objective = space.objectives[0]
    return f"{objective} has no value ({measured[0].reasons.get(objective, 'not measured')})"


def choices(settings: list[Setting], space: Space) -> int:
    """How many settings the best one was chosen among: those that have a value of the objective."""
    return sum(setting.stat(space.objectives[0]) is not None for setting in settings)


def read_too_high(settings: list[Setting], space: Space) -> str:
    """What choosing it did to the best setting's scores, as a sentence; empty where there was nothing to choose."""
    if (count := choices(settings, space)) < 2:
        return ""
    return (
        f"Its scores chose it among {count}, so they read too high: what you report of it, measure on items that chose "
        "nothing."
    )


def headline(settings: list[Setting], space: Space) -> tuple[str, str]:
    """What the sweep found, in one line of two parts."""
    best = best_of(settings, space)
    if best is None:
        return "No best setting", why_no_best(settings, space)
    first = f"Best of {count}" if (count := choices(settings, space)) > 1 else "Best"
    said = {"recovery": "brings back {} of the lost language", "retention": "keeps {} of vision"}
    means = [words.format(with_spread(stat, ".1%")) for name, words in said.items() if (stat := best.stat(name))]
    found = f"{best.label} {' and '.join(means)}"
    if not is_complete(best, space):
        found += f", on {seeds_in_words(best, space)} seeds"
    if not keeps_vision(best, space):
        others = [s for s in settings if s.stat(space.objectives[0]) and keeps_vision(s, space)]
        which = "No setting with all its seeds" if others else "No setting"
        return f"{which} keeps {space.min_retention:.1%} of vision", f"nearest: {found}"
    if best.exceptions:
        return f"{first}, but not on every task", "; ".join([found, *best.exceptions])
    return first, found


def with_spread(stat: Stat | None, spec: str) -> str:
    """`93.1% ± 1.2%` over seeds, `93.1% [90.8, 95.2]` of one; a dash for none."""
    if stat is None:
        return "–"
    if stat.ci is not None:
        low, high = (f"{end:{spec}}".removesuffix("%") for end in stat.ci)
        return f"{stat.mean:{spec}} [{low}, {high}]"
    return f"{stat.mean:{spec}}" + ("" if stat.spread is None else f" ± {stat.spread:{spec}}")


def best_recipe(setting: Setting, base: Config, space: Space, warning: str = "") -> str:
    """The best setting as a recipe that `lingu_ray.train` runs as it is; `warning`: of its scores (`read_too_high`)."""
    values = setting.trials[0].values
    config = configure(base, values, space.name).model_copy(update={"name": f"{space.name}-best"})
    scores = ", ".join(
        f"{name} {stat.mean:.1%}" for name in ("recovery", "retention") if (stat := setting.stat(name)) is not None
    )
    words = seeds_in_words(setting, space)
    seeds = "one seed" if words == "1" else f"{words} seeds"
    head = f"# Best setting of the sweep {space.name}: {setting.label or 'the base'} ({scores}; {seeds})."
    head += f"\n# {warning}" if warning else ""
    return f"{head}\n\n{to_yaml(config)}"


def write_table(settings: list[Setting], path: Path) -> None:
    """The table as CSV, a line a trial; settings as YAML has them, with all digits."""
    keys = list(dict.fromkeys(key for setting in settings for key in setting.values))
    tasks = list(dict.fromkeys(task for s in settings for trial in s.trials for task in trial.scores))
    numbers = ("step", "validation_ce", "recovery", "retention", "seconds")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "case", "seed", "state", *keys, *numbers, *tasks, "error"])
        for setting in settings:
            for trial in setting.trials:
                found = (trial.values.get(key, "") for key in keys)
                own = ["" if value == "" else strict_yaml.dump(value, inline=True) for value in found]
                measured = [getattr(trial, name) for name in numbers] + [trial.scores.get(task) for task in tasks]
                writer.writerow([trial.trial, trial.case, trial.seed, trial.state, *own, *measured, trial.error])
