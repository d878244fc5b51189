"""Every task type's metric."""

from __future__ import annotations

from lingu_ray.evaluation.metrics.language import LANGUAGE_METRICS, judge_likelihoods
from lingu_ray.evaluation.metrics.letters import judge_letters
from lingu_ray.evaluation.metrics.metric import Columns, Metric, Scores
from lingu_ray.evaluation.metrics.vision import VISION_METRICS
from lingu_ray.evaluation.tasks.harness import judge_by_harness


def _judge_choices(columns: Columns) -> Scores:
    """Language tasks have likelihoods, vision tasks answers."""
    return judge_likelihoods(columns) if "logliks" in columns else judge_letters(columns)


METRICS: dict[str, Metric] = {
    **VISION_METRICS,
    **LANGUAGE_METRICS,
    "multiple_choice": Metric("acc", True, True, _judge_choices),
    "lm_eval": Metric("lm_eval", True, True, judge_by_harness),
}
"""By `type` of a task."""
