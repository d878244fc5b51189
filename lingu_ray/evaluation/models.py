"""Which models a run's report sets side by side, and what they are called there."""

from __future__ import annotations

from pathlib import Path

from lingu_ray.config import Config


def compared_models(config: Config, distilled: Path, ce_only: Path | None) -> dict[str, str]:
    """The models that the report sets side by side, by name."""
    models = {"teacher": teacher_path(config)}
    if config.student.path is not None:
        models["adapted"] = config.student.path
    models["ce_only" if config.distill.policy == "none" else "distilled"] = str(distilled)
    if ce_only is not None:
        models[control_model(config)] = str(ce_only)
    return models


def control_model(config: Config) -> str:
    """The control's name in the evaluation: a new VLM's CE-only twin is what plain adaptation makes of it."""
    return "ce_only" if config.student.path is not None else "adapted"


def teacher_path(config: Config) -> str:
    """What the teacher is measured from: a folder, hub id or GGUF file."""
    return str(Path(config.teacher.path, config.teacher.gguf_file or ""))
