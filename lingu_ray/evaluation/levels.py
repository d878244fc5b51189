"""What models reach on a task, from its measured items: on the items themselves, and on resamples of them.

Shape suffixes: I items, K models, R resamples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lingu_ray.config import TaskConfig
from lingu_ray.config.evaluation import CLUSTER
from lingu_ray.content import fingerprint
from lingu_ray.errors import UserError
from lingu_ray.evaluation.bootstrap import Bounds, Floats, level, resample, summed
from lingu_ray.evaluation.item_files import ANSWER_COLUMNS, CUT_OFF, CUT_TO, Stamp, items_path, read_items, stamp_of
from lingu_ray.evaluation.metrics.constant import CAPTIONS, answered_alike, commonest_answer
from lingu_ray.evaluation.metrics.metric import Columns, Metric, Scores
from lingu_ray.evaluation.results import RecoveryIn
from lingu_ray.evaluation.tasks.blind import blind_name
from lingu_ray.evaluation.tasks.harness import harness_items
from lingu_ray.evaluation.tasks.judging import judge_in_nats, judge_task
from lingu_ray.evaluation.tasks.task import Task

SEED = 0


@dataclass(frozen=True)
class Resampled:
    """A value on the items, and on the resamples."""

    value: float
    value_R: Floats

    def minus(self, other: Resampled) -> Resampled:
        """The difference, resample by resample."""
        return Resampled(self.value - other.value, self.value_R - other.value_R)

    def times(self, factor: float) -> Resampled:
        """Each value times a constant."""
        return Resampled(factor * self.value, factor * self.value_R)


@dataclass(frozen=True)
class Measured:
    """One task's levels by model, on its items and on the resamples.

    `items`: how many it has; `clusters`: how many of them are drawn one by one, others with one of these.
    `alone`: nothing that is drawn has a second of its kind, so that all resamples are the same, and tell of no noise.
    `asked`: fingerprint of what all models were asked; `engine`: which one asked, and its precision; None of made-up
    answers. `nats`: the same items and resamples by likelihood, where that is measured beside the metric. `blind`: the
    same without images, where they were asked so. `constant`: the same of the commonest right answer, under itself,
    where a vision task's items can share one. `cut_to`: by item and text, the context that a model's was cut to, or 0;
    without models of which it is not known. `cut_off`: by model, the share of its answers that ended at
    `max_new_tokens`; without models that gave none, or of which it is not known.
    """

    config: TaskConfig
    metric: Metric
    items: int
    clusters: int
    scores: dict[str, Scores]
    levels: dict[str, Resampled]
    nats: Measured | None = None
    blind: Measured | None = None
    constant: Measured | None = None
    alone: bool = False
    asked: str | None = None
    engine: str | None = None
    cut_to: Mapping[str, list[list[int]]] = field(default_factory=dict)
    cut_off: Mapping[str, float] = field(default_factory=dict)

    @property
    def sign(self) -> float:
        """1 where higher is better, −1 where lower is."""
        return 1.0 if self.metric.higher_is_better else -1.0

    def gain(self, model: str, other: str) -> Resampled:
        """How much better `model` is than `other`, in levels; negative where it is worse."""
        return self.levels[model].minus(self.levels[other]).times(self.sign)

    def above_constant(self, model: str) -> Resampled:
        """How much better `model` is than the commonest right answer, which the task has."""
        assert self.constant is not None
        (always,) = self.constant.levels.values()
        return self.levels[model].minus(always).times(self.sign)

    def counted(self, recovery_in: RecoveryIn) -> Measured:
        """What mean recovery takes of the task: its metric, or nats where they are asked for and measured."""
        return self.nats if recovery_in == "nats" and self.nats is not None else self

    def incomparable(self, *models: str) -> str | None:
        """Why levels of the models have no common unit; None where they have.

        Shares have; nats have where they are of the same tokens, predicted from as many before them.
        """
        if self.metric.share:
            return None
        weights = [self.scores[model].weight for model in models]
        if any(weight != weights[0] for weight in weights):
            return "the models split the texts into different numbers of tokens: not comparable"
        cuts = [self.cut_to[model] for model in models if model in self.cut_to]
        if any(cut != cuts[0] for cut in cuts):
            lengths = sorted({length for cut in cuts for of_item in cut for length in of_item} - {0})
            return (
                f"texts were cut to contexts of {' and '.join(map(str, lengths))} tokens, not alike for all models: "
                "not comparable; give shorter ones, or long ones in parts"
            )
        return None


def read_levels(out_dir: Path, config: TaskConfig, models: list[str], resamples: int, blind: bool = False) -> Measured:
    """The levels of those of `models` that were measured on the task; with `blind` without images, too.

    Raises:
        UserError: none was, or not all on the same items.
    """
    columns = {model: c for model in models if (c := read_items(out_dir, config.name, model)) is not None}
    if not columns:
        raise unmeasured(config, models)
    unseen = {m: c for m in columns if (c := read_items(out_dir, blind_name(config.name), m)) is not None and blind}
    if blind and not unseen:
        raise UserError(
            f"evaluation.blind: {config.name}: no model was asked without images; evaluate with the models again, or "
            "leave evaluation.blind out"
        )
    stamp = _asked_alike(out_dir, config.name, list(columns))
    _asked_alike(out_dir, blind_name(config.name), list(unseen))
    items = _references(next(iter(columns.values())))
    # by fingerprint: a NaN in a column of the user's own is not equal to itself
    if len({fingerprint(_references(one)) for one in (*columns.values(), *unseen.values())}) > 1:
        raise UserError(f"evaluation.tasks: {config.name}: models were measured on different items; evaluate again")
    _check_documents(config, stamp.asked if stamp else None)
    metric, scores = judge_task(config, columns)
    in_nats = judge_in_nats(metric, scores)
    alike = _alike(config, next(iter(columns.values())))
    cluster_I = next((of_model[CLUSTER] for of_model in columns.values() if CLUSTER in of_model), None)
    units = list(dict.fromkeys(cluster_I or ()))
    drawn = (resamples, seed_of(units if len(units) > 1 else items), cluster_I)
    cut_to = {model: of_model[CUT_TO] for model, of_model in columns.items() if CUT_TO in of_model}
    return replace(
        _levels(config, metric, scores, *drawn),
        cut_to=cut_to,
        cut_off=_cut_off(columns),
        nats=replace(_levels(config, *in_nats, *drawn), cut_to=cut_to) if in_nats else None,
        blind=replace(_levels(config, *judge_task(config, unseen), *drawn, "blind"), cut_off=_cut_off(unseen))
        if unseen
        else None,
        constant=_levels(config, *judge_task(config, alike), *drawn, "always") if alike else None,
        asked=stamp.asked if stamp else None,
        engine=stamp.engine if stamp else None,
    )


def unmeasured(config: TaskConfig, models: Sequence[str]) -> UserError:
    """What to tell where none of the models is, or will be, measured on the task."""
    none = f"evaluation.tasks: {config.name}: measured on none of {', '.join(models)}"
    needed = "a model that takes images" if config.kind == "vision" else "the models"
    return UserError(f"{none}: name {needed}, or leave the task out")


def _cut_off(columns: Mapping[str, Columns]) -> dict[str, float]:
    return {m: float(np.mean(of_model[CUT_OFF])) for m, of_model in columns.items() if CUT_OFF in of_model}


def _alike(config: TaskConfig, columns: Columns) -> dict[str, Columns]:
    """The items of a vision task, all answered with the commonest right answer; none of captions."""
    if config.kind == "language" or config.type in CAPTIONS:
        return {}
    answer = commonest_answer(columns)
    return {answer: answered_alike(columns, answer)}


def _references(columns: Columns) -> Columns:
    """Names of the items, and what their answers are compared with."""
    return {name: values for name, values in columns.items() if name not in ANSWER_COLUMNS}


def _asked_alike(out_dir: Path, task: str, models: list[str]) -> Stamp | None:
    """A stamp of those that are known: all models were asked the same, and by the same engine.

    Raises:
        UserError: they were not.
    """
    stamps = {model: stamp for model in models if (stamp := stamp_of(items_path(out_dir, task, model)))}
    engines = {stamp.engine: model for model, stamp in stamps.items()}
    if len(engines) > 1:
        by = ", ".join(f"{model} by {engine}" for engine, model in engines.items())
        raise UserError(f"evaluation.tasks: {task}: models were measured differently ({by}); evaluate all again")
    if len({stamp.asked for stamp in stamps.values()}) > 1:
        raise UserError(f"evaluation.tasks: {task}: models were measured on different items; evaluate again")
    return next(iter(stamps.values()), None)


def _check_documents(config: TaskConfig, asked: str | None) -> None:
    """Check that a task of lm-evaluation-harness, which judges by its own documents, has those that were asked.

    Raises:
        UserError: its data have changed, or it draws them anew in each process.
    """
    if config.type == "lm_eval" and asked is not None and asked != Task(config, tuple(harness_items(config))).asked:
        raise UserError(
            f"evaluation.tasks: {config.name}: lm_eval/{config.path} does not ask what it did when models were "
            "measured, so their answers cannot be judged by it: name the models, and evaluate again"
        )


def seed_of(drawn: object) -> list[int]:
    """The seed of resamples: tasks that draw from the same have the same, so that a mean counts none of it twice."""
    return [SEED, int(fingerprint(drawn), 16)]


def _levels(
    config: TaskConfig,
    metric: Metric,
    scores: dict[str, Scores],
    resamples: int,
    seed: list[int],
    cluster_I: Sequence[Hashable] | None,
    way: str = "",
) -> Measured:
    """The levels of the scores; the resamples are the same for all scores of a task.

    `way`: in which the models of these names answered, so that each has unseen items of its own.
    `cluster_I`: what items share that were not sampled one by one. A metric with strata has its own units, and of one
    cluster alone nothing tells how clusters differ: then the entries are drawn one by one.
    """
    score_KI = np.array([of_model.score for of_model in scores.values()])
    weight_KI = np.array([of_model.weight for of_model in scores.values()])
    strata = next(iter(scores.values())).strata
    level_K = level(score_KI, weight_KI)
    drawn_KI, drawn_weight_KI = score_KI, weight_KI
    if cluster_I is not None and strata is None and len(set(cluster_I)) > 1:
        drawn_KI, drawn_weight_KI = summed(score_KI, cluster_I), summed(weight_KI, cluster_I)
    most = 1.0 if metric.share else next(iter(scores.values())).most
    bounds = None if most is None else Bounds(most, tuple(f"{way} {model}" for model in scores))
    levels_RK = resample(drawn_KI, drawn_weight_KI, resamples, seed, strata, bounds)
    return Measured(
        config,
        metric,
        score_KI.shape[1],
        drawn_KI.shape[1],
        scores,
        {model: Resampled(float(level_K[k]), levels_RK[:, k]) for k, model in enumerate(scores)},
        alone=max(Counter(strata or [None] * drawn_KI.shape[1]).values()) == 1,
    )
