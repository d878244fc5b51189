"""A task's metric, and the scores of its models by it: of its type, or of lm-evaluation-harness."""

from __future__ import annotations

from dataclasses import replace

from lingu_ray.config import TaskConfig
from lingu_ray.evaluation.metrics import registry
from lingu_ray.evaluation.metrics.metric import Columns, Metric, Scores
from lingu_ray.evaluation.metrics.reasoning import final_answers
from lingu_ray.evaluation.tasks.harness import judge_by_harness

METRICS = {**registry.METRICS, "lm_eval": Metric("lm_eval", True, True, judge_by_harness)}
"""By `type` of a task, all types that there are."""


def judge_task(config: TaskConfig, columns: dict[str, Columns]) -> tuple[Metric, dict[str, Scores]]:
    """The task's metric, and the scores of each model from its columns (at least one model).

    A task of lm-evaluation-harness brings a metric of its own name and scale, and judges raw text.
    """
    metric, is_raw = METRICS[config.type], config.type == "lm_eval"
    scores = {model: metric.judge(one if is_raw else final_answers(one)) for model, one in columns.items()}
    if is_raw:
        share = all(0 <= score <= 1 for of_model in scores.values() for score in of_model.score)
        return replace(metric, name=next(iter(columns.values()))["metric"][0], share=share), scores
    if config.metric is None or config.metric == metric.name:
        return metric, scores
    by_other = {model: _by(config.metric, metric.name, of_model) for model, of_model in scores.items()}
    return replace(metric, name=config.metric), by_other


def judge_in_nats(metric: Metric, scores: dict[str, Scores]) -> tuple[Metric, dict[str, Scores]] | None:
    """The same items by the log-perplexity of their right answers; None where `metric` has no likelihoods beside it."""
    name = metric.nats
    if name is None or any(name not in of_model.extra for of_model in scores.values()):
        return None
    in_nats = {model: Scores(of_model.extra[name], of_model.weight, {}) for model, of_model in scores.items()}
    return replace(metric, name=name, higher_is_better=False, share=False, nats=None), in_nats


def _by(extra: str, name: str, scores: Scores) -> Scores:
    """The scores by one of their extras; what they were by is an extra of its own name then."""
    others = {key: level for key, level in scores.extra.items() if key != extra}
    return replace(scores, score=scores.extra[extra], extra={name: scores.score, **others})
