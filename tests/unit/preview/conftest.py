"""What the preview's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from previewdata import write_preview_data


@pytest.fixture(scope="session")
def my_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the data to look at."""
    folder = tmp_path_factory.mktemp("my data")
    write_preview_data(folder)
    return folder
