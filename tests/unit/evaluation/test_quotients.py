"""Mean recovery in simulated evaluations, whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lingu_ray.config import TaskConfig
from lingu_ray.evaluation.bootstrap import Floats, interval
from lingu_ray.evaluation.levels import Measured, Resampled
from lingu_ray.evaluation.metrics.metric import Scores
from lingu_ray.evaluation.quotients import NoValue, Quotient, mean_recovery, mean_retention, recovery
from lingu_ray.evaluation.roles import OF_THE_TEACHER
from lingu_ray.evaluation.tasks.judging import METRICS

MODELS = ("teacher", "adapted", "distilled")
RIGHT_PM = np.array([[(pattern >> m) & 1 for m in range(3)] for pattern in range(8)], dtype=float)
"""Which models are right on an item, for each of the eight patterns."""
FEW = ((200, 0.10), (500, 0.06), (1000, 0.12), (2000, 0.03), (800, 0.0))
MANY = ((600, 0.05), (800, 0.05), (1000, 0.05), (1200, 0.05)) * 2 + ((800, 0.0),)
WEAK = tuple((items // 3, loss) for items, loss in MANY)
"""Items of each task, and what adapting takes of its accuracy: clear losses, small ones, and a task without."""
RESAMPLES = 400

Sizes = tuple[tuple[int, float], ...]


def simulated(random: np.random.Generator, items: int, loss: float, truth: float) -> Measured:
    """A task of right and wrong answers. Drawing items again is drawing how many have each pattern."""
    levels_M = np.array([0.5, 0.5 - loss, 0.5 - loss + truth * loss])
    # easy items are easy for all, as between models of one family
    chance_2M = np.clip(levels_M + np.array([[-0.3], [0.3]]), 0, 1)
    chance_P = np.prod(np.where(RIGHT_PM, chance_2M[:, None], 1 - chance_2M[:, None]), axis=-1).mean(axis=0)
    count_P = random.multinomial(items, chance_P)
    draws_RP = random.multinomial(items, count_P / items, size=RESAMPLES)
    level_M, level_RM = count_P @ RIGHT_PM / items, draws_RP @ RIGHT_PM / items
    config = TaskConfig(name="simulated", kind="language", type="multiple_choice", path="-")
    return Measured(
        config,
        METRICS["multiple_choice"],
        items,
        items,
        {model: Scores([], [], {}) for model in MODELS},
        {model: Resampled(float(level_M[m]), level_RM[:, m]) for m, model in enumerate(MODELS)},
    )


def value(tasks: list[Measured]) -> float:
    """The mean recovery."""
    found = mean_recovery(tasks, "distilled", OF_THE_TEACHER)
    assert isinstance(found, Resampled)
    return found.value


def mean_of_significant(tasks: list[Measured]) -> Quotient:
    """The mean over the tasks whose loss is significant: what a mean recovery must not be."""
    found = [recovery(task, "distilled", OF_THE_TEACHER) for task in tasks]
    known = [one for one in found if isinstance(one, Resampled)]
    if not known:
        return NoValue("none")
    values_R: Floats = np.mean([one.value_R for one in known], axis=0)
    return Resampled(float(np.mean([one.value for one in known])), values_R)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [FEW, MANY])
@pytest.mark.parametrize("truth", [0.0, 0.5, 1.0])
def test_mean_recovery_is_right_on_average_and_its_interval_covers(truth: float, sizes: Sizes) -> None:
    """Over 300 evaluations the mean's bias is below 0.03, and the 95% interval holds the truth in some 94% of them."""
    random = np.random.default_rng(8)
    values: list[float] = []
    hits = 0
    for _ in range(300):
        tasks = [simulated(random, items, loss, truth) for items, loss in sizes]
        found = mean_recovery(tasks, "distilled", OF_THE_TEACHER)
        assert isinstance(found, Resampled)
        values.append(found.value)
        low, high = interval(found.value_R)
        hits += low <= truth <= high
    assert abs(np.mean(values) - truth) < 0.03
    assert hits >= 0.92 * len(values)


@pytest.mark.slow
def test_a_mean_over_significant_losses_would_be_too_high() -> None:
    """With nothing recovered it shows some: where chance makes a loss large, the same chance is in the gain."""
    random = np.random.default_rng(7)
    trials = [[simulated(random, items, loss, 0.0) for items, loss in WEAK] for _ in range(200)]
    old = [found.value for tasks in trials if isinstance(found := mean_of_significant(tasks), Resampled)]
    assert len(old) > 190 and np.mean(old) > 0.1


def test_a_task_without_a_loss_is_in_the_mean() -> None:
    """It has no recovery of its own, and what happens to it moves the mean all the same; `in_mean: false` does not."""
    random = np.random.default_rng(1)
    lost, kept = simulated(random, 1000, 0.12, 0.5), simulated(random, 800, 0.0, 0.0)
    assert isinstance(recovery(kept, "distilled", OF_THE_TEACHER), NoValue)
    before = kept.levels["distilled"]
    worse = replace(kept, levels=kept.levels | {"distilled": replace(before, value=before.value - 0.1)})
    left_out = replace(worse, config=kept.config.model_copy(update={"in_mean": False}))
    one, both, hurt, out = (value([lost, *more]) for more in ([], [kept], [worse], [left_out]))
    assert both != one and hurt < both - 0.1 and out == one


def test_what_is_known_better_weighs_more() -> None:
    """Gains and losses count by 1 / the standard error of the task's loss."""
    random = np.random.default_rng(4)
    tasks = [simulated(random, 4000, 0.1, 1.0), simulated(random, 200, 0.1, 0.0)]
    known = [1 / task.gain("teacher", "adapted").value_R.std() for task in tasks]
    gains, losses = (
        [task.gain(*of).value for task in tasks] for of in (("distilled", "adapted"), ("teacher", "adapted"))
    )
    assert known[0] > 3 * known[1]
    assert value(tasks) == pytest.approx(np.dot(known, gains) / np.dot(known, losses))


def test_a_mean_of_no_task_says_so() -> None:
    """Where none is of the kind, or none is counted, that is why; not that nothing was lost."""
    for mean, kind in ((mean_recovery, "language"), (mean_retention, "vision")):
        assert mean([], "distilled", OF_THE_TEACHER) == NoValue(f"no {kind} task counts in the mean")


def test_without_any_loss_there_is_no_mean() -> None:
    """All tasks together lost nothing beyond noise; a task on which no item differs divides nothing by 0."""
    random = np.random.default_rng(2)
    kept = [simulated(random, items, 0.0, 0.0) for items in (300, 600)]
    found = mean_recovery(kept, "distilled", OF_THE_TEACHER)
    assert found == NoValue("no loss to recover beyond noise, on 2 tasks together")
    lost, one = simulated(random, 1000, 0.12, 0.5), Resampled(1.0, np.full(RESAMPLES, 1.0))
    same = replace(lost, items=100, levels=dict.fromkeys(MODELS, one))
    assert value([lost, same]) == pytest.approx(value([lost]))
