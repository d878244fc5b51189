"""How much language came back, how much vision stayed, and whether that bears the claim.

For a language task `recovery = (distilled − adapted) / (teacher − adapted)`, for a vision task
`retention = distilled / adapted`. Levels are accuracies; for perplexity the level is the log-perplexity (nats a token):
lower is better, and the quotient takes it with the sign turned: `(adapted − distilled) / (adapted − teacher)` in nats.
So 1 is all that was lost, 0 nothing, below 0 further loss, above 1 more than the teacher has.

Everything here is made from the parquet files of `items.py`; no model is needed. Intervals are 95 %, from a paired
bootstrap over items (the same resampled items for all models): they cover the choice of items, not of training seeds.

Shape suffixes: I items, K models, R resamples.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lingu_ray.config import EvaluationConfig, TaskConfig
from lingu_ray.errors import UserError
from lingu_ray.evaluation.bootstrap import Floats, interval, level, resample
from lingu_ray.evaluation.items import ADAPTED, CE_ONLY, DISTILLED, TEACHER, read_items
from lingu_ray.evaluation.metrics.metric import Columns, Metric, Scores
from lingu_ray.evaluation.metrics.registry import METRICS

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
class Estimate:
    """A recovery or retention: on the items, and on the resamples."""

    value: float
    value_R: Floats


@dataclass(frozen=True)
class NoEstimate:
    """Why a recovery or retention has no value."""

    reason: str


Quotient = Estimate | NoEstimate
Quotients = dict[str, Quotient]
"""Of one task, by model: recovery for a language task, retention for a vision task."""

QUOTIENT = {"language": "recovery", "vision": "retention"}


def summarize(out_dir: Path, models: list[str], settings: EvaluationConfig) -> dict[str, Any]:
    """Make the dict of `recovery.json` from the measured items of `models`, and write it.

    Raises:
        UserError: a task was measured on no model, or on different items for different models.
    """
    tasks: dict[str, Any] = {}
    known: dict[str, list[Quotients]] = {"language": [], "vision": []}
    for config in settings.tasks:
        task = _measure(out_dir, config, models, settings.bootstrap)
        quotients = _quotients(task, models)
        known[config.kind].append(quotients)
        tasks[config.name] = _task_entry(task, quotients)
    result = {"tasks": tasks, "summary": _summary(known, models, settings)}
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)
    (out_dir / "recovery.json").write_text(text + "\n", encoding="utf-8")
    return result


def _quotients(task: Measured, models: list[str]) -> Quotients:
    """Of all models that are not a reference themselves, and of `distilled` and `ce_only` in any case."""
    quotient = recovery if task.config.kind == "language" else retention
    return {model: quotient(task, model) for model in dict.fromkeys((DISTILLED, CE_ONLY, *_judged(models)))}


def _judged(models: list[str]) -> list[str]:
    return [model for model in models if model not in (TEACHER, ADAPTED)]


def _task_entry(task: Measured, quotients: Quotients) -> dict[str, Any]:
    config, name = task.config, QUOTIENT[task.config.kind]
    models = {
        model: _score(task, model) | (_entry(name, quotients[model]) if model in quotients else {})
        for model in task.level
    }
    return {
        "kind": config.kind,
        "metric": task.metric.name,
        "higher_is_better": task.metric.higher_is_better,
        "share": task.metric.share,
        "n": task.items,
        "models": models,
        **_entry(name, quotients[DISTILLED]),
        f"{name}_reason": _reason(quotients[DISTILLED]),
        "ce_only": _entry(name, quotients[CE_ONLY]),
    }


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
    scores = {model: METRICS[config.type].judge(of_model) for model, of_model in columns.items()}
    score_KI = np.array([of_model.score for of_model in scores.values()])
    weight_KI = np.array([of_model.weight for of_model in scores.values()])
    levels_RK = resample(score_KI, weight_KI, resamples, [SEED, zlib.crc32(config.name.encode())])
    level_K = level(score_KI, weight_KI)
    return Measured(
        config,
        _metric(config, next(iter(columns.values())), scores),
        len(items),
        scores,
        {model: float(level_K[k]) for k, model in enumerate(scores)},
        {model: levels_RK[:, k] for k, model in enumerate(scores)},
    )


def _metric(config: TaskConfig, columns: Columns, scores: dict[str, Scores]) -> Metric:
    """The type's; a task of lm-evaluation-harness brings a metric of its own name and scale."""
    metric = METRICS[config.type]
    if config.type != "lm_eval":
        return metric
    share = all(0 <= score <= 1 for of_model in scores.values() for score in of_model.score)
    return replace(metric, name=columns["metric"][0], share=share)


def _score(task: Measured, model: str) -> dict[str, Any]:
    """A model's score and interval, as read by people: perplexity itself, not its logarithm."""
    point, ci = task.level[model], interval(task.level_R[model])
    scores = task.scores[model]
    extra = {name: sum(values) / sum(scores.weight) for name, values in scores.extra.items()}
    if task.config.type == "perplexity":
        return {"score": math.exp(point), "ci": [math.exp(x) for x in ci], "nats_per_token": point, **extra}
    return {"score": point, "ci": ci, **extra}


def recovery(task: Measured, model: str) -> Quotient:
    """Share of what adapting took that `model` has again; no value where adapting took nothing beyond noise."""
    if absent := [name for name in (TEACHER, ADAPTED, model) if name not in task.level]:
        return NoEstimate(f"not measured: {', '.join(absent)}")
    if not task.metric.share and _weights_differ(task, (TEACHER, ADAPTED, model)):
        return NoEstimate("the models cut the texts into different numbers of tokens: not comparable")
    lost = task.sign * (task.level[TEACHER] - task.level[ADAPTED])
    lost_R = task.sign * (task.level_R[TEACHER] - task.level_R[ADAPTED])
    low, high = interval(lost_R)
    if low <= 0:
        unit = "nats per token" if task.config.type == "perplexity" else task.metric.name
        found = f"teacher − adapted = {task.sign * lost:+.3f} {unit}, lost {lost:+.3f} [{low:+.3f}, {high:+.3f}]"
        return NoEstimate(f"no loss to recover beyond noise: {found}")
    regained = task.sign * (task.level[model] - task.level[ADAPTED])
    regained_R = task.sign * (task.level_R[model] - task.level_R[ADAPTED])
    return _quotient(regained, regained_R, lost, lost_R)


def retention(task: Measured, model: str) -> Quotient:
    """Share of the adapted model's accuracy that `model` has; no value where the adapted model has none."""
    if absent := [name for name in (ADAPTED, model) if name not in task.level]:
        return NoEstimate(f"not measured: {', '.join(absent)}")
    if interval(task.level_R[ADAPTED])[0] <= 0:
        return NoEstimate(f"the adapted model has nothing to keep: {task.metric.name} {task.level[ADAPTED]:.3f}")
    return _quotient(task.level[model], task.level_R[model], task.level[ADAPTED], task.level_R[ADAPTED])


def _quotient(above: float, above_R: Floats, below: float, below_R: Floats) -> Estimate:
    # The 2.5% of resamples with the smallest denominator are taken at its interval's low end, which is above 0: next
    # to 0 the quotient flies off, and past it changes its sign.
    return Estimate(above / below, above_R / np.maximum(below_R, interval(below_R)[0]))


def _weights_differ(task: Measured, models: tuple[str, ...]) -> bool:
    return any(task.scores[model].weight != task.scores[models[0]].weight for model in models)


def _mean(quotients: list[Quotient]) -> Quotient:
    """Mean over the tasks that have a value."""
    known = [q for q in quotients if isinstance(q, Estimate)]
    if not known:
        reasons = [q.reason for q in quotients if isinstance(q, NoEstimate)] or ["no such task"]
        return NoEstimate("; ".join(dict.fromkeys(reasons)))
    return Estimate(float(np.mean([q.value for q in known])), np.mean([q.value_R for q in known], axis=0))


def _difference(of: list[Quotient], to: list[Quotient]) -> Quotient:
    """Mean over tasks of the paired difference, where both have a value."""
    return _mean(
        [
            Estimate(a.value - b.value, a.value_R - b.value_R)
            for a, b in zip(of, to, strict=True)
            if isinstance(a, Estimate) and isinstance(b, Estimate)
        ]
    )


def _entry(name: str, quotient: Quotient) -> dict[str, Any]:
    if isinstance(quotient, NoEstimate):
        return {name: None, f"{name}_ci": None}
    return {name: quotient.value, f"{name}_ci": interval(quotient.value_R)}


def _reason(quotient: Quotient) -> str | None:
    return quotient.reason if isinstance(quotient, NoEstimate) else None


def _summary(known: dict[str, list[Quotients]], models: list[str], settings: EvaluationConfig) -> dict[str, Any]:
    def of(kind: str, model: str) -> list[Quotient]:
        return [quotients[model] for quotients in known[kind]]

    def means(model: str) -> dict[str, Any]:
        """Mean recovery and retention over the tasks that give one."""
        return {k: v for kind, name in QUOTIENT.items() for k, v in _entry(name, _mean(of(kind, model))).items()}

    of_models = {model: means(model) for model in dict.fromkeys((DISTILLED, CE_ONLY, *_judged(models)))}
    control = of_models[CE_ONLY]
    ce_only = None
    if control["recovery"] is not None:
        difference = _difference(of("language", DISTILLED), of("language", CE_ONLY))
        beaten = interval(difference.value_R)[0] > 0 if isinstance(difference, Estimate) else None
        ce_only = {**control, **_entry("difference", difference), "beaten": beaten}
    summary = of_models[DISTILLED] | {"ce_only": ce_only, "models": {m: of_models[m] for m in _judged(models)}}
    failures = _failures(summary, settings)
    unknown = [
        f"{name} has no value ({_reason(_mean(of(kind, DISTILLED)))})"
        for kind, name in QUOTIENT.items()
        if summary[name] is None
    ]
    summary["claim_holds"] = None if unknown else not failures
    summary["verdict"] = _verdict(summary, failures, unknown)
    if missing := [name for name in (TEACHER, ADAPTED, DISTILLED) if name not in models]:
        tasks = sum(map(len, known.values()))
        summary["verdict"] = (
            f"Scores of {', '.join(models)} on {tasks} task{'s' if tasks > 1 else ''}. Recovery and retention need "
            f"models of the names {', '.join(missing)} too."
        )
    return summary


def _failures(summary: dict[str, Any], settings: EvaluationConfig) -> list[str]:
    """What speaks against the claim."""
    failures = []
    for name, least in (("recovery", settings.min_recovery), ("retention", settings.min_retention)):
        if summary[name] is not None and summary[name] < least:
            failures.append(f"{name} is below {least:.0%}")
    if summary["ce_only"] and not summary["ce_only"]["beaten"]:
        failures.append("CE-only is not beaten beyond the interval")
    return failures


def _verdict(summary: dict[str, Any], failures: list[str], unknown: list[str]) -> str:
    """The one line of the report."""
    if unknown:
        return f"The claim cannot be judged: {'; '.join(unknown)}."
    found = [
        f"{percent(summary['recovery'], summary['recovery_ci'])} of the lost language came back",
        f"{percent(summary['retention'], summary['retention_ci'], 1)} of vision was kept",
    ]
    if control := summary["ce_only"]:
        found.insert(1, f"(CE only: {percent(control['recovery'], control['recovery_ci'])})")
    text = f"{found[0]} {found[1]}, {found[2]}" if control else f"{found[0]}, {found[1]}"
    if failures:
        return f"The claim does not hold: {text}; {', '.join(failures)}."
    return f"The claim holds: {text}."


def percent(value: float, ci: list[float], digits: int = 0) -> str:
    """`97% [94, 101]`."""
    low, high = (f"{100 * x:.{digits}f}" for x in ci)
    return f"{value:.{digits}%} [{low}, {high}]"
