"""The pair that estimates are made of."""

from pathlib import Path

import pytest
from tiny import tiny_student, tiny_teacher


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configurations of the tiny pair, without weights."""
    folder = tmp_path_factory.mktemp("pair")
    teacher = tiny_teacher()
    teacher.config.save_pretrained(folder / "teacher")
    tiny_student(teacher).config.save_pretrained(folder / "student")
    return folder
