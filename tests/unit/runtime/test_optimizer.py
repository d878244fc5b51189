"""Parameter groups and the learning-rate schedule."""

import itertools

import pytest
from tiny import tiny_student, tiny_teacher

from lingu_ray.config import LearningRates, TrainConfig
from lingu_ray.distill.student import Student
from lingu_ray.runtime.training.optimizer import lr_factor, make_optimizer, set_learning_rates, trained_parameters


def test_frozen_groups_are_left_out():
    """A rate of 0 freezes its group; only matrices decay; each group keeps its own rate under the schedule."""
    student = Student(tiny_student(tiny_teacher()))
    settings = TrainConfig(
        steps=100, weight_decay=0.1, learning_rates=LearningRates(vision=0, projector=1e-3, decoder=1e-4)
    )
    optimizer = make_optimizer(student, settings)
    groups = student.parameter_groups()
    assert optimizer.defaults["fused"]  # on GPUs too: without it a step needs another copy of the weights
    assert not any(p.requires_grad for _, p in groups["vision"])
    assert len(trained_parameters(optimizer)) == len(groups["projector"]) + len(groups["decoder"])
    for group in optimizer.param_groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])
    factor = set_learning_rates(optimizer, 60, settings)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([1e-4 * factor, 1e-3 * factor])


def test_metrics_show_the_rate_of_what_learns():
    """The decoder's, whatever the others; of a run that trains the projector or tower alone not 0."""
    assert LearningRates(vision=1e-3, projector=1e-2, decoder=1e-4).shown == 1e-4
    assert LearningRates(vision=0, projector=1e-2, decoder=0).shown == 1e-2
    assert LearningRates(vision=1e-3, projector=0, decoder=0).shown == 1e-3


def test_progress_runs_from_the_first_step_to_the_last():
    """Schedules reach their end at the last step, not one after it; a run of one step is at its start."""
    settings = TrainConfig(steps=5)
    assert [settings.progress(step) for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert TrainConfig(steps=1).progress(0) == 0


def test_schedule_warms_up_and_ends_at_its_floor():
    """Linear to the peak, cosine to `min_lr` at the very last step, never rising after the peak."""
    settings = TrainConfig(steps=50, warmup=0.1, min_lr=0.1)
    factors = [lr_factor(step, settings) for step in range(50)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(factors[4:]))


@pytest.mark.parametrize("steps", [50, 100, 300])
def test_a_share_of_the_steps_is_as_many_as_it_says(steps: int):
    """The rate is full after the warm-up's share, part of a step counting as one: 0.07 of 100 steps are 7, not 8."""
    for percent in range(1, 100):
        settings = TrainConfig(steps=steps, warmup=percent / 100)
        rising = next(step for step in range(steps) if lr_factor(step, settings) == 1) + 1
        assert rising == -(-percent * steps // 100)
