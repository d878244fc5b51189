"""Which models of a sweep are kept: none goes while it may still be the best, and in the end the best is there."""

import math
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest

from lingu_ray.runtime.run_folder.folder import RunFolder
from tuning.kept_models import remove_copies, remove_unwanted
from tuning.outcome import Outcome, read_outcomes
from tuning.progress import SweepProgress
from tuning.results import best_of, settings_of
from tuning.space import Space

CASES = {name: {"distill.w_kd": weight} for weight, name in enumerate("abc")}


def space(**keys: object) -> Space:
    """A sweep of three cases."""
    return Space.model_validate({"name": "s", "base": "demo", "cases": CASES, "seeds": 2} | keys)


def outcome(case: str, seed: int, recovery: float | None = None, state: str = "finished", **rest: object) -> Outcome:
    """A trial of a case; one that finished was measured."""
    retention = None if recovery is None else 1.0
    return Outcome(f"{case}{seed}", CASES[case], case, seed, state, recovery=recovery, retention=retention, **rest)


def end(trials: Path, trial: Outcome) -> None:
    """Write what a trial came to, with its model where it finished, and with its checkpoints where it was stopped."""
    trial.write(trials / trial.trial)
    folder = RunFolder(trials / trial.trial)
    for path in [folder.export] if trial.state == "finished" else [folder.checkpoints, folder.initial_model]:
        path.mkdir(parents=True)


def models(trials: Path) -> set[str]:
    """The trials whose models are there."""
    return {export.parent.name for export in trials.glob("*/export")}


def test_a_setting_that_falls_back_takes_no_other_model_along(tmp_path: Path):
    """The first seed of `a` leads, and its second one makes `b` the best: a model of `b` is there in the end."""
    two = space(cases={name: CASES[name] for name in "ab"})
    progress = SweepProgress(two, tmp_path)
    left = []
    for trial in (outcome("a", 0, 0.9), outcome("b", 0, 0.85), outcome("a", 1, 0.5), outcome("b", 1, 0.8)):
        end(tmp_path, trial)
        progress.update()
        left.append(models(tmp_path))
    assert left == [{"a0"}, {"a0", "b0"}, {"a0", "b0"}, {"b0"}]


@pytest.mark.parametrize("kept", [1, 2])
def test_in_whatever_order_trials_end_the_best_settings_keep_their_best_model(tmp_path: Path, kept: int):
    """Each has the model of its best seed; no order of ending leaves another one, or none."""
    trials = [outcome("a", 0, 0.9), outcome("a", 1, 0.5), outcome("b", 0, 0.8), outcome("b", 1, 0.85)]
    trials += [outcome("c", 0, 0.1), outcome("c", 1, 0.75)]
    for number, order in enumerate(list(permutations(trials))[::50]):
        folder = tmp_path / str(number)
        for trial in order:
            end(folder, trial)
            remove_unwanted(read_outcomes(folder), space(keep_models=kept), folder)
        assert models(folder) == set(["b1", "a0"][:kept])


@pytest.mark.parametrize(
    ("last", "ended"),
    [
        (outcome("a", 1, state="running"), False),
        (outcome("a", 1, state="failed"), False),
        (outcome("a", 1, state="stopped", by_hand=True), False),
        (outcome("a", 1, state="stopped"), True),
        (None, False),
    ],
)
def test_models_stay_while_a_seed_may_still_change_the_mean(tmp_path: Path, last: Outcome | None, ended: bool):
    """What runs, failed, was stopped by hand or was not started may come again; what the scheduler stopped does not."""
    for trial in (outcome("a", 0, 0.9), outcome("b", 0, 0.8), outcome("b", 1, 0.8), *([last] if last else [])):
        end(tmp_path, trial)
    remove_unwanted(read_outcomes(tmp_path), space(), tmp_path)
    assert models(tmp_path) == ({"b0"} if ended else {"a0", "b0"})


def test_a_model_that_is_gone_does_not_count(tmp_path: Path):
    """Where the best model was removed by hand, the next one is kept."""
    for trial in (outcome("a", 0, 0.9), outcome("b", 0, 0.8), outcome("c", 0, 0.7)):
        end(tmp_path, trial)
    RunFolder(tmp_path / "a0").export.rmdir()
    remove_unwanted(read_outcomes(tmp_path), space(seeds=1), tmp_path)
    assert models(tmp_path) == {"b0"}


def test_the_same_values_drawn_again_are_one_setting(tmp_path: Path):
    """Of three trials with equal values and seed one model is kept, and of the next best setting another."""
    again = [replace(outcome("a", 0, 0.9), trial=f"a-{number}") for number in range(3)]
    for trial in (*again, outcome("b", 0, 0.8), outcome("c", 0, 0.7)):
        end(tmp_path, trial)
    drawn = space(seeds=1, keep_models=2)
    remove_unwanted(read_outcomes(tmp_path), drawn, tmp_path)
    best = best_of(settings_of(read_outcomes(tmp_path), drawn), drawn)
    assert best is not None and best.case == "a" and models(tmp_path) == {"a-0", "b0"}


def checkpoints(trials: Path) -> set[str]:
    """The trials whose checkpoints are there."""
    return {folder.parent.name for folder in trials.glob("*/checkpoints")}


def test_checkpoints_of_what_was_stopped_early_go_when_the_sweep_is_over(tmp_path: Path):
    """Not before, for until then a sweep that breaks off may resume them; those of what is started again stay."""
    ended = [outcome("a", 0, 0.9), outcome("b", 0, state="stopped", validation_ce=2.0)]
    for trial in (*ended, outcome("c", 0, state="stopped", by_hand=True)):
        end(tmp_path, trial)
    one = space(seeds=1)
    remove_unwanted(read_outcomes(tmp_path), one, tmp_path)
    assert checkpoints(tmp_path) == {"b0", "c0"}
    remove_unwanted(read_outcomes(tmp_path), one, tmp_path, over=True)
    assert models(tmp_path) == {"a0"} and checkpoints(tmp_path) == {"c0"}
    assert not RunFolder(tmp_path / "b0").initial_model.exists()


def test_of_a_sweep_without_a_finished_trial_the_best_checkpoints_stay(tmp_path: Path):
    """By validation, as the table ranks them; one that is no number is the last."""
    for case, validation in {"a": math.nan, "b": 2.0, "c": 1.5}.items():
        end(tmp_path, outcome(case, 0, state="stopped", validation_ce=validation))
    remove_unwanted(read_outcomes(tmp_path), space(seeds=1, keep_models=2), tmp_path, over=True)
    assert checkpoints(tmp_path) == {"b0", "c0"}


@pytest.mark.parametrize("last", ["finished", "failed"])
def test_copies_of_a_population_go_when_none_resumes_from_one(tmp_path: Path, last: str):
    """A trial that failed is started again, and may be a copy of another."""
    copy = tmp_path / "experiment" / "trial-1" / "checkpoint_000001"
    copy.mkdir(parents=True)
    remove_copies([outcome("a", 0, 0.9), outcome("b", 0, state=last)], tmp_path)
    assert copy.exists() is (last == "failed")
