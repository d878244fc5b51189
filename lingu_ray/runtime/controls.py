"""Controls: runs beside a run, on the same data in the same order for as many steps, without the teacher.

- `same_ce` is the run with a KD weight of 0: each row's cross-entropy weighs what it weighs in the run. It differs from
  the run in the teacher alone, so it tells what the teacher does; with `distill.on_policy` also in the labels of the
  rows that the run answers itself.
- `plain_ce` is plain cross-entropy, weighted as the sources say, without `ce_on_distilled`: what one would do
  without the method.
"""

from __future__ import annotations

import logging
from pathlib import Path

from lingu_ray.config import CONTROLS, Config, DistillConfig, Schedule
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.tracking.store_uri import same_store
from lingu_ray.storage import below

SAME_CE, PLAIN_CE = CONTROLS
FOLDER = "controls"
"""Folder in the run's that has a folder for each control."""

log = logging.getLogger(__name__)


def control_configs(config: Config) -> dict[str, Config]:
    """The settings of the controls that are trained beside the run, by name.

    None beside a run without a teacher, and one where both are the same.
    """
    asked = [name for name in CONTROLS if name in config.controls]
    if not config.uses_teacher:
        asked = []
    elif asked and _coincide(config):
        asked = [PLAIN_CE]
    return {name: control_config(config, name) for name in asked}


def say_controls(config: Config) -> None:
    """Log which of the controls that were asked for are not trained, and why; warn where the verdict lacks one."""
    trained = control_configs(config)
    if config.controls and not trained:
        log.info("controls: none is trained: this run has no teacher itself")
    elif set(config.controls) - set(trained):
        log.info(
            "controls: same_ce and plain_ce are one and the same here, for every row's cross-entropy weighs what its "
            "source says: trained as plain_ce"
        )
    measured_against_plain_ce = config.student.path is None or config.student.role == "original_vlm"
    if config.uses_teacher and config.evaluation.tasks and measured_against_plain_ce and PLAIN_CE not in trained:
        log.warning(
            "this student has lost no language before the run, so recovery is measured against plain fine-tuning: "
            "without controls=plain_ce there will be no verdict"
        )


def control_config(config: Config, name: str) -> Config:
    """The settings of one control. Its folder is in the run's, and its MLflow run is nested under the run's."""
    sources = config.training_sources()
    tracking = {
        "uri": same_store(config),
        "run_name": f"{config.tracking.run_name or config.name}/{name}",
        "parent": config.run_dir,
    }
    return config.model_copy(
        update={
            "name": name,
            "output_dir": below(config.run_place, FOLDER),
            "controls": (),
            "corpus": config.corpus.model_copy(update={"sources": sources, "cache_dir": str(config.corpora_dir)}),
            "distill": _without_teacher(config.distill, name),
            "tracking": config.tracking.model_copy(update=tracking),
        }
    )


def control_folder(run: RunFolder, name: str) -> RunFolder:
    """The folder of a run's control, whether it is there or not."""
    return RunFolder(run.root / FOLDER / name)


def run_of_control(folder: Path) -> Path | None:
    """The folder of the run that the control in `folder` is beside; None for another folder."""
    folder = folder.resolve()
    return folder.parent.parent if folder.name in CONTROLS and folder.parent.name == FOLDER else None


def _without_teacher(distill: DistillConfig, name: str) -> DistillConfig:
    changes = {"w_kd": _constant(0)} if name == SAME_CE else {"policy": "none", "w_ce": _constant(1)}
    return distill.model_copy(update={**changes, "on_policy": 0.0})


def _coincide(config: Config) -> bool:
    weighs_the_same = all(config.ce_weight(source) == source.ce_weight for source in config.training_sources())
    return weighs_the_same and config.distill.w_ce == _constant(1)


def _constant(value: float) -> Schedule:
    return Schedule(start=value, end=value)
