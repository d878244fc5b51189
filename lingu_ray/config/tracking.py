"""Settings of tracking with MLflow."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lingu_ray.config.base import Section, Several
from lingu_ray.paths import LocalPath, TrackingUri


class TrackingConfig(Section):
    """MLflow: where and under which names a run is tracked."""

    uri: TrackingUri | None = Field(
        None,
        description="tracking URI; null: $MLFLOW_TRACKING_URI, else the SQLite file mlflow.db in `output_dir`, "
        "of an evaluation in or beside `out`",
    )
    also: Several[Literal["tensorboard", "wandb"]] = Field(
        (),
        description="trackers that get the same metrics: tensorboard (in the run's folder), wandb; optional packages",
    )
    experiment: str = Field("lingu_ray", min_length=1, description="experiment name")
    run_name: str | None = Field(None, description="name of the MLflow run; null: `name`")
    parent: LocalPath | None = Field(
        None, description="folder of a run, sweep or evaluation to nest this one under; null: none"
    )
    system_metrics: bool = Field(True, description="log CPU, memory and GPU use")
    tags: dict[str, str] = Field({}, description="tags of the MLflow run, to filter by")
