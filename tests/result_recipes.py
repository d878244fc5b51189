"""The recipes of `benchmarks/result` as far as the package has their settings."""

from __future__ import annotations

from benchmarks.result.table import RECIPES
from lingu_ray.config import Config, EvaluationConfig
from lingu_ray.config.command_line import read_recipe
from lingu_ray.config.settings import Settings, parse


def recipe(name: str) -> Settings[Config]:
    """A recipe, without the settings that do not exist yet."""
    settings = read_recipe(str(RECIPES / f"{name}.yaml"))
    settings.override("train.precision=bf16")
    if name == "align":
        settings.tree.pop("align")
        settings.override("student.from_teacher={image_size: 112, patch_size: 14, heads: 6}")
    return settings


def tasks() -> EvaluationConfig:
    """The tasks of all rows, without the settings that do not exist yet."""
    settings = parse((RECIPES / "evaluation.yaml").read_text(), "evaluation.yaml", EvaluationConfig)
    settings.tree = {key: value for key, value in settings.tree.items() if key in EvaluationConfig.model_fields}
    return settings.validate()
