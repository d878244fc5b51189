"""A wrong `ray.address` is told in seconds, where Ray itself would try for minutes."""

import socket

import pytest

from lingu_ray.config import RayConfig
from lingu_ray.errors import UserError
from lingu_ray.runtime.cluster import connect


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_nothing_answers(monkeypatch: pytest.MonkeyPatch, scheme: str):
    """A port that nobody listens on: the error names the setting and the cure."""
    monkeypatch.setattr(connect, "_ANSWER_WITHIN_S", 0.5)
    monkeypatch.setattr(connect.ray, "is_initialized", lambda: False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"ray\.address={address}: no Ray cluster answers there within 0\.5 s"):
            connect.connect(RayConfig(address=address))


def test_the_address_for_jobs_is_told_apart(monkeypatch: pytest.MonkeyPatch):
    """The dashboard's address is refused at once, with what is wanted."""
    monkeypatch.setattr(connect.ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=r"give auto, HOST:6379 of the head node, or ray://HOST:10001"):
        connect.connect(RayConfig(address="http://127.0.0.1:8265"))
