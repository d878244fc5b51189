"""How much language came back, and how much vision stayed.

For a language task `recovery = (distilled − adapted) / (teacher − adapted)`, for a vision task
`retention = distilled / adapted`. Levels are accuracies; for perplexity the level is the log-perplexity (nats per
token): lower is better, and the quotient takes it with the sign turned: `(adapted − distilled) / (adapted − teacher)`
in nats. So 1 means all of the loss came back, 0 none, below 0 further loss, above 1 better than the teacher.

All of it is computed from the parquet files of `item_files.py`; no model is needed. Intervals are 95%, from a paired
bootstrap over items (the same resampled items for all models): they cover the choice of items, not of training seeds.

Shape suffixes: I items, K models, R resamples.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lingu_ray.config import EvaluationConfig, TaskConfig
from lingu_ray.errors import UserError
from lingu_ray.evaluation.bootstrap import Floats, interval, level, resample
from lingu_ray.evaluation.item_files import read_items
from lingu_ray.evaluation.metrics.metric import Metric, Scores
from lingu_ray.evaluation.recovery_json import write_recovery
from lingu_ray.evaluation.results import (
    PERPLEXITY,
    QUOTIENTS,
    Control,
    Estimate,
    Interval,
    Kind,
    Means,
    ModelScore,
    QuotientName,
    Recovery,
    TaskScores,
)
from lingu_ray.evaluation.roles import ADAPTED, CE_ONLY, DISTILLED, TEACHER
from lingu_ray.evaluation.tasks.judging import judge_task
from lingu_ray.evaluation.verdict import judge

SEED = 0


@dataclass(frozen=True)
class Measured:
    """One task's levels by model: `level` on its items, `level_R` on the resamples. `items` is how many it has."""

    config: TaskConfig
    metric: Metric
    items: int
    scores: dict[str, Scores]
    level: dict[str, float]
    level_R: dict[str, Floats]

    @property
    def sign(self) -> float:
        """1 where higher is better, −1 where lower is."""
        return 1.0 if self.metric.higher_is_better else -1.0


@dataclass(frozen=True)
class Resampled:
    """A value on the items, and on the resamples."""

    value: float
    value_R: Floats


@dataclass(frozen=True)
class NoValue:
    """Why a recovery or retention has no value."""

    reason: str


Quotient = Resampled | NoValue
Quotients = dict[str, Quotient]
"""Of one task, by model: recovery for a language task, retention for a vision task."""


def summarize(out_dir: Path, models: list[str], settings: EvaluationConfig) -> Recovery:
    """Compute the result from the measured items of `models`, and write it as `recovery.json`.

    Raises:
        UserError: a task was measured on no model, or on different items for different models.
    """
    floors: dict[QuotientName, float] = {"recovery": settings.min_recovery, "retention": settings.min_retention}
    tasks: dict[str, TaskScores] = {}
    known: dict[Kind, list[Quotients]] = {"language": [], "vision": []}
    for config in settings.tasks:
        task = _measure(out_dir, config, models, settings.bootstrap)
        quotients = _quotients(task, models)
        known[config.kind].append(quotients)
        tasks[config.name] = _task_scores(task, quotients, floors)
    result = _result(tasks, known, floors, models)
    write_recovery(result, out_dir)
    return result


def _quotients(task: Measured, models: list[str]) -> Quotients:
    """Of all models that are not a reference themselves, and of `distilled` and `ce_only` in any case."""
    quotient = recovery if task.config.kind == "language" else retention
    return {model: quotient(task, model) for model in dict.fromkeys((DISTILLED, CE_ONLY, *_judged(models)))}


def _judged(models: list[str]) -> list[str]:
    return [model for model in models if model not in (TEACHER, ADAPTED)]


def _measure(out_dir: Path, config: TaskConfig, models: list[str], resamples: int) -> Measured:
    columns = {model: c for model in models if (c := read_items(out_dir, config.name, model)) is not None}
    if not columns:
        raise UserError(
            f"evaluation.tasks: {config.name}: measured on none of {', '.join(models) or 'no models'}; "
            "a vision task needs a model that takes images: name one, or leave the task out"
        )
    items = next(iter(columns.values()))["item"]
    if any(other["item"] != items for other in columns.values()):
        raise UserError(f"evaluation.tasks: {config.name}: models were measured on different items; evaluate again")
    metric, scores = judge_task(config, columns)
    score_KI = np.array([of_model.score for of_model in scores.values()])
    weight_KI = np.array([of_model.weight for of_model in scores.values()])
    strata = next(iter(scores.values())).strata
    levels_RK = resample(score_KI, weight_KI, resamples, [SEED, zlib.crc32(config.name.encode())], strata)
    level_K = level(score_KI, weight_KI)
    return Measured(
        config,
        metric,
        len(items),
        scores,
        {model: float(level_K[k]) for k, model in enumerate(scores)},
        {model: levels_RK[:, k] for k, model in enumerate(scores)},
    )


def recovery(task: Measured, model: str) -> Quotient:
    """Share of what adapting took that `model` has again; no value where adapting took nothing beyond noise."""
    if absent := [name for name in (TEACHER, ADAPTED, model) if name not in task.level]:
        return NoValue(f"not measured: {', '.join(absent)}")
    if not _comparable(task, (TEACHER, ADAPTED, model)):
        return NoValue("the models split the texts into different numbers of tokens: not comparable")
    lost = _gain(task, TEACHER, ADAPTED)
    low, high = interval(lost.value_R)
    if low <= 0:
        unit = "nats per token" if task.config.type == PERPLEXITY else task.metric.name
        found = f"teacher − adapted = {task.sign * lost.value:+.3f} {unit}, lost {lost.value:+.3f}"
        return NoValue(f"no loss to recover beyond noise: {found} [{low:+.3f}, {high:+.3f}]")
    return _quotient(_gain(task, model, ADAPTED), lost)


def retention(task: Measured, model: str) -> Quotient:
    """Share of the adapted model's level that `model` has; no value where the adapted model has none."""
    if absent := [name for name in (ADAPTED, model) if name not in task.level]:
        return NoValue(f"not measured: {', '.join(absent)}")
    if interval(task.level_R[ADAPTED])[0] <= 0:
        return NoValue(f"the adapted model has nothing to keep: {task.metric.name} {task.level[ADAPTED]:.3f}")
    return _quotient(*(Resampled(task.level[name], task.level_R[name]) for name in (model, ADAPTED)))


def _quotient(above: Resampled, below: Resampled) -> Resampled:
    # The 2.5% of resamples with the smallest denominator are taken at its interval's low end, which is above 0: next
    # to 0 the quotient flies off, and past it changes its sign.
    least = interval(below.value_R)[0]
    return Resampled(above.value / below.value, above.value_R / np.maximum(below.value_R, least))


def _gain(task: Measured, model: str, other: str) -> Resampled:
    """How much better `model` is than `other`, in levels; negative where it is worse."""
    value = task.sign * (task.level[model] - task.level[other])
    return Resampled(value, task.sign * (task.level_R[model] - task.level_R[other]))


def _comparable(task: Measured, models: tuple[str, ...]) -> bool:
    """Whether levels of the models have a common unit: nats per token do where the tokens are the same."""
    weights = [task.scores[model].weight for model in models]
    return task.metric.share or all(weight == weights[0] for weight in weights)


def _task_scores(task: Measured, quotients: Quotients, floors: dict[QuotientName, float]) -> TaskScores:
    def over(other: str) -> Estimate | None:
        there = DISTILLED in task.level and other in task.level and _comparable(task, (DISTILLED, other))
        return _estimate(_gain(task, DISTILLED, other)) if there else None

    distilled = quotients[DISTILLED]
    return TaskScores(
        kind=task.config.kind,
        metric=task.metric.name,
        higher_is_better=task.metric.higher_is_better,
        is_share=task.metric.share,
        items=task.items,
        models={model: _model_score(task, model, quotients.get(model)) for model in task.level},
        distilled=_estimate(distilled),
        reason=distilled.reason if isinstance(distilled, NoValue) else None,
        ce_only=_estimate(quotients[CE_ONLY]),
        floor=floors[QUOTIENTS[task.config.kind]],
        over_adapted=over(ADAPTED),
        over_ce_only=over(CE_ONLY),
    )


def _model_score(task: Measured, model: str, quotient: Quotient | None) -> ModelScore:
    """A model's score as people read it: perplexity itself, not its logarithm."""
    point, ci, scores = task.level[model], interval(task.level_R[model]), task.scores[model]
    extra = {name: sum(values) / sum(scores.weight) for name, values in scores.extra.items()}
    if task.config.type == PERPLEXITY:
        point, ci, extra = math.exp(point), [math.exp(x) for x in ci], {"nats_per_token": point, **extra}
    return ModelScore(Estimate(point, Interval(*ci)), extra, None if quotient is None else _estimate(quotient))


def _estimate(quotient: Quotient) -> Estimate | None:
    if isinstance(quotient, NoValue):
        return None
    return Estimate(quotient.value, Interval(*interval(quotient.value_R)))


def _mean(quotients: list[Quotient]) -> Quotient:
    """Mean over the tasks that have a value."""
    known = [q for q in quotients if isinstance(q, Resampled)]
    if not known:
        reasons = [q.reason for q in quotients if isinstance(q, NoValue)] or ["no such task"]
        return NoValue("; ".join(dict.fromkeys(reasons)))
    return Resampled(float(np.mean([q.value for q in known])), np.mean([q.value_R for q in known], axis=0))


def _difference(of: list[Quotient], to: list[Quotient]) -> Quotient:
    """Mean over tasks of the paired difference, where both have a value."""
    return _mean(
        [
            Resampled(a.value - b.value, a.value_R - b.value_R)
            for a, b in zip(of, to, strict=True)
            if isinstance(a, Resampled) and isinstance(b, Resampled)
        ]
    )


def _result(
    tasks: dict[str, TaskScores],
    known: dict[Kind, list[Quotients]],
    floors: dict[QuotientName, float],
    models: list[str],
) -> Recovery:
    def of(kind: Kind, model: str) -> list[Quotient]:
        return [quotients[model] for quotients in known[kind]]

    def means(model: str) -> Means:
        return Means(_estimate(_mean(of("language", model))), _estimate(_mean(of("vision", model))))

    distilled, ce_only, control = means(DISTILLED), means(CE_ONLY), None
    if ce_only.recovery is not None:
        difference = _estimate(_difference(of("language", DISTILLED), of("language", CE_ONLY)))
        control = Control(ce_only, difference, difference.ci.low > 0 if difference else None)
    found = {QUOTIENTS[kind]: _mean(of(kind, DISTILLED)) for kind in QUOTIENTS}
    reasons: dict[QuotientName, str] = {name: mean.reason for name, mean in found.items() if isinstance(mean, NoValue)}
    verdict = judge(tasks, distilled, control, floors, reasons, models)
    return Recovery(tasks, distilled, control, {model: means(model) for model in _judged(models)}, verdict)
