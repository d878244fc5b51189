"""What the demo's tests share."""

from __future__ import annotations

import pytest

from lingu_ray.demo import text


@pytest.fixture(scope="session")
def splits() -> dict[str, text.Documents]:
    """The demo's text, dealt out. Reading it takes seconds."""
    return text.split(text.read_documents())
