"""Where the Hugging Face hub cannot be reached, that is said at once, and what its cache has is taken."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from tiny import tiny_teacher

from lingu_ray import hub
from lingu_ray.errors import UserError
from lingu_ray.runtime.models.load import read_config


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The address of a hub at whose port nobody listens, for a process that may ask it; its cache is `tmp_path`."""
    for name in ("http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with socket.socket() as closed:  # bound, so that nobody else takes it
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        hub.reach.cache_clear()
        yield constants.ENDPOINT
        hub.reach.cache_clear()


def test_a_hub_that_cannot_be_reached_is_told_with_the_cure(endpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    """The libraries would try each file again and again; processes that are started then do not ask it either."""
    caplog.set_level("INFO", "lingu_ray")
    with pytest.raises(UserError, match=rf"it cannot be reached \({endpoint}: .*HF_ENDPOINT=.*HF_HOME"):
        read_config("owner/lm", None, False, "teacher.path")
    asked, told = caplog.messages
    assert asked == "teacher.path: asking the Hugging Face hub for owner/lm"
    assert told.startswith(f"the Hugging Face hub cannot be reached ({endpoint}: ")
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_what_the_cache_has_is_taken(endpoint: str, tmp_path: Path) -> None:
    """Without a network a model that was fetched before is there as ever."""
    snapshot = tmp_path / "models--owner--lm" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (refs := tmp_path / "models--owner--lm" / "refs").mkdir()
    (refs / "main").write_text("0123")
    tiny_teacher(folder=snapshot)
    assert read_config("owner/lm", None, False, "teacher.path").model_type == "llama"


def test_a_proxy_stands_for_the_hub(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a proxy no machine needs to know the hub's address, unless `no_proxy` says that it is reached without."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        assert not hub.reach()
        hub.reach.cache_clear()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert "cannot be reached" in hub.reach()
