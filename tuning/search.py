"""From a space to what Ray Tune needs: a parameter space, a search algorithm, a scheduler.

Listed values are drawn by their position, so that they may be anything that YAML can say; `space.decode` turns a draw
back into settings.
"""

from __future__ import annotations

from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher
from ray.tune.search.optuna import OptunaSearch

from lingu_ray.config import Config
from lingu_ray.errors import UserError
from tuning.space import CASE, SEED, Domain, Space, is_whole, seeds_of

STEP, VALIDATION, SCORE = "train_step", "validation_ce", "score"
USER_ERROR = "user_error"
"""In a trial's result: the next step raises a `UserError`."""


def parameters(space: Space, base: Config) -> dict[str, Any]:
    """Tune's parameter space."""
    drawn = {key: _drawn(domain, is_whole(key, domain, base)) for key, domain in space.search.items()}
    if space.cases:
        names = list(space.cases)
        drawn[CASE] = tune.choice(names) if space.algorithm == "optuna" else tune.grid_search(names)
    if space.seeds > 1:
        drawn[SEED] = tune.grid_search(seeds_of(space, base))
    return drawn


def _drawn(domain: Domain, whole: bool) -> Any:
    if domain.grid is not None:
        return tune.grid_search(list(range(len(domain.grid))))
    if domain.choice is not None:
        return tune.choice(list(range(len(domain.choice))))
    if domain.uniform is not None:
        low, high = domain.uniform
        return tune.randint(int(low), int(high) + 1) if whole else tune.uniform(low, high)
    assert domain.loguniform is not None
    low, high = domain.loguniform
    return tune.lograndint(int(low), int(high) + 1) if whole else tune.loguniform(low, high)


def algorithm(space: Space, base: Config) -> Searcher | SearchAlgorithm:
    """The search algorithm, seeded by the base's seed; how many trials run at once is not its matter."""
    if space.algorithm == "random":
        return BasicVariantGenerator(constant_grid_search=True, random_state=base.seed)
    try:
        several = len(space.objectives) > 1
        metric: Any = list(space.objectives) if several else SCORE
        mode: Any = ["max"] * len(space.objectives) if several else "max"
        return FinishedTrialsOptuna(metric=metric, mode=mode, seed=base.seed)
    except AssertionError as error:
        raise UserError("algorithm: optuna needs a package: pip install 'lingu-ray[optuna]'") from error


class FinishedTrialsOptuna(OptunaSearch):
    """Optuna over finished trials: what a trial reports before its end has no objective yet."""

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Ignore it: these results are for the scheduler."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna; a trial without objectives was pruned, or has failed."""
        metrics = self.metric if isinstance(self.metric, list) else [self.metric]
        if result is not None and any(result.get(name) is None or result[name] != result[name] for name in metrics):
            result = None
        super().on_trial_complete(trial_id, result, error)


def scheduler(space: Space, base: Config) -> TrialScheduler:
    """What stops or copies running trials, by validation cross-entropy."""
    by_validation: dict[str, Any] = {"time_attr": STEP, "metric": VALIDATION, "mode": "min"}
    if space.asha is not None:
        return ASHAScheduler(
            **by_validation,
            max_t=base.train.steps,
            grace_period=space.asha.grace or base.train.validate_every,
            reduction_factor=space.asha.reduction,
            stop_last_trials=False,  # they are still to be measured
        )
    if space.pbt is not None:
        return PopulationBasedTraining(
            **by_validation,
            perturbation_interval=space.pbt.interval,
            burn_in_period=space.pbt.interval,
            hyperparam_mutations={key: _mutable(domain) for key, domain in space.search.items()},
            quantile_fraction=space.pbt.quantile,
            resample_probability=space.pbt.resample,
            log_config=False,
            synch=True,  # so that the best has saved when the worst copies it, however few run at once
        )
    return FIFOScheduler()


def _mutable(domain: Domain) -> Any:
    """A domain as PBT takes it: a list to move along by one, or a range."""
    return list(range(len(domain.listed))) if domain.listed is not None else _drawn(domain, whole=False)
