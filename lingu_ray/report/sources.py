"""The data that a run was trained on, source by source: settings, weights, and counts of the corpus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lingu_ray.config import Config, SourceConfig
from lingu_ray.corpus.order import passes


@dataclass(frozen=True)
class TrainedSource:
    """One source.

    `distilled`: whether KD applies to it. `ce_weight`: of its tokens, `ce_on_distilled` included. `share`: its share of
    the rows in the corpus order. `training_rows`: distinct rows that are not held out. `passes`: how often training
    read them from this corpus.
    """

    settings: SourceConfig
    distilled: bool
    ce_weight: float
    share: float
    read: int
    rejected: dict[str, int]
    truncated: int
    held_out: int
    training_rows: int
    passes: float


def trained_sources(config: Config, manifest: dict[str, Any], steps: int) -> list[TrainedSource]:
    """The training sources after `steps` optimizer steps on the corpus with this manifest."""
    seen = passes(manifest, steps * config.train.rows_per_step)
    return [_trained(config, source, manifest, seen[source.name]) for source in config.training_sources()]


def _trained(config: Config, source: SourceConfig, manifest: dict[str, Any], seen: float) -> TrainedSource:
    counts = manifest["sources"][source.name]
    return TrainedSource(
        settings=source,
        distilled=config.uses_teacher and config.distills(source),
        ce_weight=config.ce_weight(source),
        share=counts["used"] / manifest["rows"],
        read=counts["read"],
        rejected=counts["rejected"],
        truncated=counts["truncated"],
        held_out=counts["validation"],
        training_rows=counts["accepted"] - counts["validation"],
        passes=seen,
    )
