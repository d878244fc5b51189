"""The metric of every task type that is judged here; tasks of lm-evaluation-harness judge themselves (`tasks/`)."""

from __future__ import annotations

from collections.abc import Callable

from lingu_ray.evaluation.metrics.captions import judge_cider, rouge_l
from lingu_ray.evaluation.metrics.choice import judge_letters, judge_mme
from lingu_ray.evaluation.metrics.likelihood import judge_last_word, judge_likelihoods, judge_perplexity
from lingu_ray.evaluation.metrics.metric import Columns, Metric, Scores
from lingu_ray.evaluation.metrics.short_answers import anls, exact_match, relaxed_accuracy, vqa_accuracy


def _choices(columns: Columns) -> Scores:
    """Language tasks have likelihoods, vision tasks answers."""
    return judge_likelihoods(columns) if "logliks" in columns else judge_letters(columns)


def _mean_of(score: Callable[[str, list[str]], float]) -> Callable[[Columns], Scores]:
    """Judge by the mean of a score of prediction and answers."""

    def judge(columns: Columns) -> Scores:
        scores = [score(p, answers) for p, answers in zip(columns["prediction"], columns["answers"], strict=True)]
        return Scores(scores, [1.0] * len(scores), {})

    return judge


METRICS: dict[str, Metric] = {
    "multiple_choice": Metric("acc", True, True, _choices, nats="nats_per_choice"),
    "last_word": Metric("acc", True, True, judge_last_word, nats="nats_per_word"),
    "perplexity": Metric("perplexity", False, False, judge_perplexity),
    "exact_match": Metric("exact_match", True, True, _mean_of(exact_match)),
    "vqa_accuracy": Metric("vqa_accuracy", True, True, _mean_of(vqa_accuracy)),
    "anls": Metric("anls", True, True, _mean_of(anls)),
    "relaxed_accuracy": Metric("relaxed_accuracy", True, True, _mean_of(relaxed_accuracy)),
    "cider": Metric("cider", True, False, judge_cider),
    "rouge_l": Metric("rouge_l", True, True, _mean_of(rouge_l)),
    "mme": Metric("mme", True, False, judge_mme),
}
"""By `type` of a task."""
