"""How much language came back, and how much vision stayed: the result of an evaluation, from its measured items.

`quotients.py` has the arithmetic. All of it is computed from the parquet files of `item_files.py`; no model is needed.
Intervals are 95%, from a paired bootstrap over items (the same resampled items for all models; those of one image drawn
together): they cover the choice of items, not of training seeds.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from lingu_ray.config import EvaluationConfig
from lingu_ray.evaluation.bootstrap import interval
from lingu_ray.evaluation.item_files import check_one_model
from lingu_ray.evaluation.levels import Measured, read_levels
from lingu_ray.evaluation.quotients import (
    NoValue,
    Quotient,
    counts,
    estimated,
    mean_recovery,
    mean_retention,
    recovery,
    retention,
)
from lingu_ray.evaluation.recovery_json import write_recovery
from lingu_ray.evaluation.results import (
    PERPLEXITY,
    QUOTIENTS,
    Blind,
    Constant,
    Estimate,
    Interval,
    Means,
    ModelScore,
    QuotientName,
    Recovery,
    RecoveryIn,
    TaskScores,
)
from lingu_ray.evaluation.roles import DISTILLED, References, compared_with, references_among
from lingu_ray.evaluation.verdict import judge

_MOST_NATS = 700.0
"""Per token, as a model that has diverged may reach: of some more the exponential is too large for a number."""


def summarize(out_dir: Path, models: list[str], settings: EvaluationConfig) -> Recovery:
    """Compute the result from the measured items of `models`, and write it as `recovery.json`.

    Raises:
        UserError: a task was measured on no model, or on different items for different models; different models of
            one name were measured.
    """
    floors: dict[QuotientName, float] = {"recovery": settings.min_recovery, "retention": settings.min_retention}
    references = references_among(models)
    for model in models:
        check_one_model(out_dir, settings, model)
    measured = [
        read_levels(out_dir, config, models, settings.bootstrap, settings.blind and config.kind == "vision")
        for config in settings.tasks
    ]
    judged = [model for model in models if model not in references]
    others = compared_with(models, references)
    tasks: dict[str, TaskScores] = {}
    for task in measured:
        both = (task,) if task.nats is None else (task, task.nats)
        by_metric, *in_nats = (_task_scores(one, judged, others, floors, references) for one in both)
        tasks[task.config.name] = _counting(replace(by_metric, nats=next(iter(in_nats), None)), settings.recovery_in)
    counted = [task.counted(settings.recovery_in) for task in measured]
    distilled, reasons = _means(counted, DISTILLED, references)
    means = {model: _means(counted, model, references)[0] for model in judged}
    over = {model: _means(counted, DISTILLED, references, beside=model)[0] for model in others}
    claimed = {name: task.counted(settings.recovery_in) for name, task in tasks.items()}
    verdict = judge(claimed, distilled, over, floors, reasons, models, references)
    result = Recovery(tasks, distilled, means, over, reasons, references, verdict, settings.recovery_in)
    write_recovery(result, out_dir)
    return result


def _means(
    tasks: list[Measured], model: str, references: References, beside: str | None = None
) -> tuple[Means, dict[QuotientName, str]]:
    """The model's means, with `beside` minus that model's, and why one has no value where it has none."""
    found: dict[QuotientName, Quotient] = {
        "recovery": mean_recovery(tasks, model, references, beside),
        "retention": mean_retention(tasks, model, references, beside),
    }
    reasons = {name: quotient.reason for name, quotient in found.items() if isinstance(quotient, NoValue)}
    return Means(_estimate(found["recovery"]), _estimate(found["retention"])), reasons


def _counting(task: TaskScores, recovery_in: RecoveryIn) -> TaskScores:
    """The task with the one of its two scores out of the mean that does not count there."""
    if task.nats is None:
        return task
    if recovery_in == "nats":
        return replace(task, in_mean=False)
    return replace(task, nats=replace(task.nats, in_mean=False))


def _task_scores(
    task: Measured,
    judged: list[str],
    others: list[str],
    floors: dict[QuotientName, float],
    references: References,
) -> TaskScores:
    quotient = recovery if task.config.kind == "language" else retention
    quotients = {model: quotient(task, model, references) for model in dict.fromkeys((DISTILLED, *judged))}
    compared = [] if task.alone else [other for other in others if {DISTILLED, other} <= task.levels.keys()]
    unpaired = task.alone or not {*references} <= task.levels.keys() or task.incomparable(*references)
    distilled = quotients[DISTILLED]
    return TaskScores(
        kind=task.config.kind,
        metric=task.metric.name,
        higher_is_better=task.metric.higher_is_better,
        is_share=task.metric.share,
        items=task.items,
        clusters=task.clusters,
        models={model: _model_score(task, model, quotients.get(model)) for model in task.levels},
        distilled=_estimate(distilled),
        reason=distilled.reason if isinstance(distilled, NoValue) else None,
        floor=floors[QUOTIENTS[task.config.kind]],
        in_mean=counts(task, DISTILLED if DISTILLED in task.levels else references.baseline, references),
        lost=None if unpaired else estimated(task.gain(*references)),
        over={m: estimated(task.gain(DISTILLED, m)) for m in compared if not task.incomparable(DISTILLED, m)},
        asked=task.asked,
        engine=task.engine,
        limit=task.config.limit,
        blind=None if task.blind is None or task.alone else _blind(task, task.blind),
        constant=None if task.constant is None or task.alone else _constant(task, task.constant),
    )


def _blind(task: Measured, blind: Measured) -> Blind:
    """The task without its images, and what they add, on the same items."""
    gains = {model: task.levels[model].minus(level).times(task.sign) for model, level in blind.levels.items()}
    return Blind(
        {model: estimated(level) for model, level in blind.levels.items()},
        {model: estimated(gain) for model, gain in gains.items()},
        dict(blind.cut_off),
    )


def _constant(task: Measured, constant: Measured) -> Constant:
    """The commonest answer's score, and how much better the models are, on the same items."""
    ((answer, level),) = constant.levels.items()
    above = {model: estimated(task.above_constant(model)) for model in task.levels}
    return Constant(answer, estimated(level), above)


def _model_score(task: Measured, model: str, quotient: Quotient | None) -> ModelScore:
    """A model's score as people read it: perplexity itself, not its logarithm."""
    level, scores = task.levels[model], task.scores[model]
    point, ci = level.value, interval(level.value_R)
    extra = {name: sum(values) / sum(scores.weight) for name, values in scores.extra.items()}
    if task.config.type == PERPLEXITY:
        point, ci, extra = _perplexity(point), [_perplexity(x) for x in ci], {"nats_per_token": point, **extra}
    found = None if quotient is None else _estimate(quotient)
    return ModelScore(Estimate(point, Interval(*ci)), extra, found, task.cut_off.get(model))


def _perplexity(nats: float) -> float:
    return math.exp(min(nats, _MOST_NATS))


def _estimate(quotient: Quotient) -> Estimate | None:
    return None if isinstance(quotient, NoValue) else estimated(quotient)
