"""The pair that estimates are made of."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import tiny_student, tiny_teacher

from lingu_ray.config import Config
from lingu_ray.cost.models import Models, read_models


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configurations of the tiny pair, without weights."""
    folder = tmp_path_factory.mktemp("pair")
    teacher = tiny_teacher()
    teacher.config.save_pretrained(folder / "teacher")
    tiny_student(teacher).config.save_pretrained(folder / "student")
    return folder


@pytest.fixture(scope="session")
def models_of() -> Callable[[Config], Models]:
    """`read_models`, once for all runs of the same models: a pass of theirs is then traced once, too."""
    found: dict[str, Models] = {}

    def models_of(config: Config) -> Models:
        decide = (
            config.student,
            config.teacher.path,
            config.uses_teacher,
            config.train.learning_rates,
            config.train.lora,
        )
        if repr(decide) not in found:
            found[repr(decide)] = read_models(config)
        return found[repr(decide)]

    return models_of
