"""Which trained models of a sweep are kept: of the best settings one each. Another goes once it cannot be wanted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.storage import remove
from tuning.outcome import Outcome
from tuning.results import Setting, rank, settings_of
from tuning.space import Space


def remove_unwanted(outcomes: list[Outcome], space: Space, trials: Path) -> None:
    """Of settings whose seeds have all ended, keep a model each of the `keep_models` best ones, and remove the others.

    The means of such settings stay, so what is not among the best of them now will not be later. Of settings with a
    seed that is still to end every model stays.
    """
    ended = [setting for setting in settings_of(outcomes, space) if setting.has_ended(space.seeds)]
    models = [found for setting in ended if (found := _models(setting, space, trials))]
    for place, found in enumerate(models):
        for export in found[1:] if place < space.keep_models else found:
            remove(export)


def _models(setting: Setting, space: Space, trials: Path) -> list[Path]:
    """The folders of a setting's trained models that are there, the best trial's first."""
    finished = [trial for trial in setting.trials if trial.state == "finished"]
    best_first = sorted(finished, key=lambda trial: rank(replace(setting, trials=(trial,)), space))
    exports = [RunFolder(trials / trial.trial).export for trial in best_first]
    return [export for export in exports if export.exists()]
