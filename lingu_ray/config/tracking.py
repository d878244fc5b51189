"""Settings of tracking with MLflow."""

from __future__ import annotations

import posixpath
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from lingu_ray.config.base import Section, Several
from lingu_ray.paths import LocalPath, TrackingUri

_NAME = re.compile(r"[\w.: /-]{1,200}")


def check_name(setting: str, name: str) -> None:
    """Check that MLflow accepts a name of the user's own as a tag, and behind the setting's name as a parameter.

    Raises:
        ValueError: it does not; the message says which names MLflow accepts.
    """
    if not _NAME.fullmatch(name) or posixpath.normpath(name) != name or name.startswith(("/", "..")):
        accepted = "up to 200 letters, digits, blanks and _ - . : /, read as a relative path"
        raise ValueError(f"{setting}: MLflow takes no name {name!r}; it takes {accepted}")


def _taken_by_mlflow(tags: dict[str, str]) -> dict[str, str]:
    for name in tags:
        check_name("tracking.tags", name)
    return tags


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
    tags: Annotated[dict[str, str], AfterValidator(_taken_by_mlflow)] = Field(
        {}, description="tags of the MLflow run, to filter by"
    )
