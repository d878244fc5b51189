"""The models that an evaluation compares: the four roles of the method, and which model of a run has which."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lingu_ray.config import Config

TEACHER, ADAPTED, CE_ONLY, DISTILLED = ROLES = ("teacher", "adapted", "ce_only", "distilled")


def in_order(models: Iterable[str]) -> list[str]:
    """Names of models, each once: the roles in their order, then others by name."""
    found = set(models)
    return [role for role in ROLES if role in found] + sorted(found - set(ROLES))


def compared_models(config: Config, trained: Path, control: Path | None) -> dict[str, str]:
    """The models that a run's evaluation compares, by name: path, hub id or GGUF file."""
    models = {TEACHER: config.teacher.path}
    if config.student.path is not None:
        models[ADAPTED] = config.student.path
    models[trained_role(config)] = str(trained)
    if control is not None:
        models[control_role(config)] = str(control)
    return models


def trained_role(config: Config) -> str:
    """The role of the model that a run trains."""
    return CE_ONLY if config.distill.policy == "none" else DISTILLED


def control_role(config: Config) -> str:
    """The role of a run's control. For a new VLM it is what plain adaptation makes of it: the adapted model."""
    return CE_ONLY if config.student.path is not None else ADAPTED
