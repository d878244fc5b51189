"""Settings of the method: which rows are distilled, by which divergence, how strongly."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from lingu_ray.config.base import Schedule, Scheduled, Section, rule


class DistillConfig(Section):
    """The method: which rows are distilled, by which divergence, how strongly."""

    policy: Literal["selective", "all", "language_only", "none"] = Field(
        "selective",
        description="selective: CE on all sources, KD on language-heavy ones; all: CE and KD on all; "
        "language_only: language-heavy sources alone; none: CE only",
    )
    divergence: Literal["forward_kl", "reverse_kl", "jsd", "tv"] = Field(
        "forward_kl", description="forward_kl: KL(T‖S); reverse_kl: KL(S‖T); jsd: JSD(beta); tv: total variation"
    )
    beta: float = Field(0.5, gt=0, lt=1, description="jsd: weight of the teacher in the mixture of the two")
    top_k: PositiveInt | None = Field(
        None, description="compare the teacher's k likeliest tokens, and all others as one; null: every token"
    )
    temperature: Scheduled = Field(
        Schedule(start=1.0, end=1.0),
        description="softmax temperature τ of teacher and student in the KD term; number or schedule",
    )
    on_policy: float = Field(
        0.0, ge=0, le=1, description="share of the distilled rows whose answer the student samples itself, for KD alone"
    )
    sampled_tokens: PositiveInt = Field(64, description="on_policy: longest sampled answer, tokens")
    sampling_temperature: float = Field(
        1.0, gt=0, description="on_policy: temperature of the sampling; not τ of the KD term"
    )
    ce_on_distilled: float = Field(
        1.0, ge=0, description="factor on the CE of distilled rows; below 1 the teacher counts more there"
    )
    kd_normalizer: Literal["supervised", "distilled"] = Field(
        "supervised",
        description="what the sum of KD is divided by. supervised: all supervised tokens, as CE is, so that a token's "
        "KD weighs the same whatever share is distilled; distilled: the tokens with a KD term",
    )
    w_ce: Scheduled = Field(Schedule(start=1.0, end=1.0), description="weight of the CE term; number or schedule")
    w_kd: Scheduled = Field(Schedule(start=1.0, end=1.0), description="weight of the KD term; number or schedule")

    @rule
    def _warm(self) -> DistillConfig:
        if min(self.temperature.start, self.temperature.end, *(value for _, value in self.temperature.points)) <= 0:
            raise ValueError("distill.temperature must be above 0")
        return self
