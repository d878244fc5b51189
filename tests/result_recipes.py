"""The recipes of `benchmarks/result`."""

from __future__ import annotations

from benchmarks.result.table import RECIPES
from lingu_ray.config import Config, EvaluationConfig
from lingu_ray.config.command_line import read_recipe
from lingu_ray.config.settings import Settings, parse


def recipe(name: str) -> Settings[Config]:
    """The settings of a recipe."""
    return read_recipe(str(RECIPES / f"{name}.yaml"))


def tasks() -> EvaluationConfig:
    """The tasks of all rows."""
    return parse((RECIPES / "evaluation.yaml").read_text(), "evaluation.yaml", EvaluationConfig).validate()
