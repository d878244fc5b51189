"""What keeps Ray from being reached or started is told in seconds, where Ray itself would try for minutes."""

import inspect
import os
import re
import socket
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import ray
from commands import Command
from ray._private.utils import write_ray_address

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


def test_auto_where_the_cluster_is_gone(monkeypatch: pytest.MonkeyPatch):
    """Ray's note of the last `ray start` outlives its cluster: nobody answers there, or there is none; told at once."""
    monkeypatch.setattr(connect, "_ANSWER_WITHIN_S", 0.5)
    monkeypatch.setattr(connect.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray._private.services, "find_gcs_addresses", set)  # of other tests on this machine
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with tempfile.TemporaryDirectory(prefix="lr-") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        Path(folder, "ray").mkdir()
        with pytest.raises(UserError, match=r"ray\.address=auto: no Ray cluster answers there\. Could not find any"):
            connect.connect(RayConfig(address="auto"))
        write_ray_address("127.0.0.1:9")
        with pytest.raises(UserError, match=r"ray\.address=auto, which is [\d.]+:9 here: no Ray cluster answers there"):
            connect.connect(RayConfig(address="auto"))


def test_a_proxy_is_not_asked(monkeypatch: pytest.MonkeyPatch):
    """A cluster that answers is found beside a proxy of the environment, which Ray itself does not take either."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(connect, "_ANSWER_WITHIN_S", 5.0)
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        connect._require_answer(f"127.0.0.1:{port}", "ray.address")
    finally:
        server.stop(None)


def test_an_address_of_the_environment_is_called_so(monkeypatch: pytest.MonkeyPatch):
    """`RAY_ADDRESS`, which Ray's pages give the dashboard's address for jobs, is named, and no setting."""
    monkeypatch.setattr(connect.ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(UserError, match=r"^RAY_ADDRESS=http://127\.0\.0\.1:8265: give auto"):
        connect.connect(RayConfig())


def test_the_address_for_jobs_is_told_apart(monkeypatch: pytest.MonkeyPatch):
    """The dashboard's address is refused at once, with what is wanted."""
    monkeypatch.setattr(connect.ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=r"give auto, HOST:6379 of the head node, or ray://HOST:10001"):
        connect.connect(RayConfig(address="http://127.0.0.1:8265"))


START_RAY = """
from lingu_ray.config import RayConfig
from lingu_ray.errors import UserError
from lingu_ray.runtime.cluster import connect
try:
    connect.connect(RayConfig())
    print("nodes:", len(connect.ray.nodes()))
except UserError as error:
    assert not connect.ray.is_initialized()
    print(error)
"""


@pytest.mark.slow
def test_a_folder_whose_path_is_too_long_for_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As `TMPDIR` of a batch job often is: the error names the variable that helps.

    In a process of its own, for in that of the tests another one may have started Ray.
    """
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with Command([sys.executable, "-c", START_RAY], env={"TMPDIR": str(tmp_path / ("long" * 25))}) as command:
        told = command.finish()
    assert re.search(r"AF_UNIX path length .*/sockets/.* Set RAY_TMPDIR to a folder", told)


@pytest.mark.slow
def test_a_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch):
    """As of a container's user, or on nodes that lack it: the error names it, and not the folder of Ray's sockets."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with Command([sys.executable, "-c", START_RAY], env={"HOME": "/proc/nobody", "RAY_AUTH_MODE": "token"}) as command:
        assert "Ray cannot keep its token in /proc/nobody/.ray: No such file or directory. Set HOME" in command.finish()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may be another user")
def test_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As a number that no table of users has, in a container or a service: told before Ray starts."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    as_nobody = START_RAY.replace("try:", "import os\nos.setuid(54321)\nos.environ.pop('HOME')\ntry:")
    with Command([sys.executable, "-c", as_nobody], env={"HOME": "/", "RAY_TMPDIR": str(tmp_path)}) as command:
        assert "no home folder of this user is known, where Ray keeps its token: set HOME to one" in command.finish()


@pytest.mark.slow
def test_nobody_else_can_read_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ray writes it for all to read: its folder is the user's alone, also one that Ray made before."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / ".ray").mkdir(mode=0o755)
    with Command([sys.executable, "-c", START_RAY], env={"HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}) as command:
        command.finish()
    assert (tmp_path / ".ray/auth_token").exists()
    assert (tmp_path / ".ray").stat().st_mode & 0o077 == 0


def test_a_machine_on_which_ray_starts_too_slowly(monkeypatch: pytest.MonkeyPatch):
    """Ray gives up after half a minute, with an error of no type: what helps is told."""

    def slow(*_: object, **__: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because")

    assert connect._STARTS_SLOWLY in inspect.getsource(ray._private.node.Node)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(connect.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connect.ray, "init", slow)
    with pytest.raises(
        UserError, match=r"Ray does not start on this machine in .* again when the machine is less busy"
    ):
        connect.connect(RayConfig())


@pytest.mark.slow
def test_what_another_cluster_left_is_not_joined(monkeypatch: pytest.MonkeyPatch):
    """Ray notes the address of what `ray start` started, and the note outlives it: without an address Ray is local."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with tempfile.TemporaryDirectory(prefix="lr-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        Path(folder, "ray").mkdir()
        write_ray_address("127.0.0.1:9")
        with Command([sys.executable, "-c", START_RAY], env={"RAY_TMPDIR": folder}) as command:
            assert "nodes: 1" in command.finish()
