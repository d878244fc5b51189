"""Which trained models of a sweep are kept: of the best settings one each. Another goes once it cannot be wanted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.storage import remove
from tuning.outcome import Outcome
from tuning.results import Setting, rank, settings_of
from tuning.space import Space


def remove_unwanted(outcomes: list[Outcome], space: Space, trials: Path, over: bool = False) -> None:
    """Of settings whose seeds have all ended, keep a model each of the `keep_models` best ones, and remove the others.

    The means of such settings stay, so what is not among the best of them now will not be later. Of settings with a
    seed that is still to end every model stays. `over`: no trial is resumed any more that was stopped early, so the
    checkpoints of one are its model.
    """
    ended = [setting for setting in settings_of(outcomes, space) if setting.has_ended(space.seeds)]
    models = [found for setting in ended if (found := _models(setting, space, trials, over))]
    for place, found in enumerate(models):
        for paths in found[1:] if place < space.keep_models else found:
            for path in paths:
                remove(path)


def remove_copies(outcomes: list[Outcome], tune: Path) -> None:
    """Remove the checkpoints that Ray Tune has of a population, once no trial can resume as a copy of another."""
    if all(outcome.state == "finished" for outcome in outcomes):
        for checkpoint in tune.glob("*/*/checkpoint_*"):
            remove(checkpoint)


def trained_model(setting: Setting, space: Space, trials: Path) -> Path | None:
    """The export of the setting's best trial that is there; None where none is kept."""
    models = _models(setting, space, trials, over=False)
    return models[0][0] if models else None


def _models(setting: Setting, space: Space, trials: Path, over: bool) -> list[list[Path]]:
    """The paths of each of a setting's models that are there, the best trial's first."""
    wanted = ("finished", "stopped") if over else ("finished",)
    trained = [trial for trial in setting.trials if trial.state in wanted]
    best_first = sorted(trained, key=lambda trial: rank(replace(setting, trials=(trial,)), space))
    models = [_model(trial, RunFolder(trials / trial.trial)) for trial in best_first]
    return [paths for paths in models if paths[-1].exists()]


def _model(trial: Outcome, folder: RunFolder) -> list[Path]:
    """What a trial's model is made of, last what is there as long as any of it is."""
    return [folder.export] if trial.state == "finished" else [folder.checkpoints, folder.ray, folder.initial_model]
