"""`lingu-ray doctor` on real clusters: two nodes that differ, a token that is missing, a store that does not answer."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from commands import Command
from tinyrun import config, write_settings

from benchmarks.ports import free_port
from lingu_ray.runtime.doctor.cluster import examine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RAY = str(Path(sys.executable).parent / "ray")
MOUNTS = ["unshare", "--map-root-user", "--mount"]
"""Begins a command that may mount folders which no other process sees."""


def unheard() -> str:
    """The address of a server that is not there."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture
def two_nodes(data: Path, tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A cluster that asks for a token; yields its address and an environment with the token.

    Its second node has another folder at `runs`, another Transformers and none of the first's environment.
    """
    if subprocess.run([*MOUNTS, "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("a folder that one node alone sees takes `unshare --mount`, which is not allowed here")
    (tmp_path / "runs").mkdir()
    (tmp_path / "older" / "transformers-0.0.1.dist-info").mkdir(parents=True)
    (tmp_path / "older" / "transformers-0.0.1.dist-info" / "METADATA").write_text(
        "Name: transformers\nVersion: 0.0.1\n"
    )
    (tmp_path / "token").write_text("a-token-of-this-test-that-is-long-enough")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    well = {"RAY_free_objects_batch_size": "1", "RAY_JOB_STOP_WAIT_TIME_S": "120"}
    older = {
        "RAY_free_objects_batch_size": "0",
        "PYTHONPATH": f"{tmp_path / 'older'}:{os.environ.get('PYTHONPATH', '')}",
    }
    port = free_port()
    head = [RAY, "start", "--head", "--block", "--num-cpus=1", f"--port={port}", "--include-dashboard=false"]
    other = f"mount -t tmpfs none '{tmp_path}/runs' && exec {RAY} start --block --num-cpus=1 --address=127.0.0.1:{port}"
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lr-", ignore_cleanup_errors=True))
        first = stack.enter_context(Command([*head, f"--temp-dir={folder}"], env=token | well))
        first.wait_for(lambda: "Ray runtime started" in first.printed)
        second = stack.enter_context(Command([*MOUNTS, "sh", "-c", other], env=token | older))
        second.wait_for(lambda: "Ray runtime started" in second.printed)
        yield f"127.0.0.1:{port}", token


@pytest.mark.long
def test_what_differs_between_nodes_is_found_and_nothing_else(
    two_nodes: tuple[str, dict[str, str]], data: Path, tmp_path: Path
) -> None:
    """All at once, with exit code 1: the second node's folder, version and environment, and a store that does not
    answer; the rest is well, the token included. Without the token the cluster is not reached, and that is said."""
    address, token = two_nodes
    settings = write_settings(tmp_path / "run.yaml", data, tmp_path / "runs", tracking={"uri": unheard()})
    words = [settings, "--address", address, "--json"]
    found = {one["check"]: one for one in json.loads(doctor(*words, env=token)[1])}
    assert {name: one["level"] for name, one in found.items() if one["level"] != "ok"} == {
        **{"tracking": "error", "versions": "error", "output": "error", "environment": "warning", "stopping": "warning"}
    }
    assert "MLflow cannot open it" in found["tracking"]["message"] and found["ray"]["message"].startswith("2 nodes")
    assert re.search(r"has transformers .*\b0\.0\.1\b", found["versions"]["message"])
    assert "not the folder that this command sees" in found["output"]["message"]
    assert found["network"]["message"] == "every node reaches every other one"
    assert all(found[name]["cure"] for name in ("versions", "output", "environment", "stopping"))
    assert not list((tmp_path / "runs").iterdir())  # nothing of it stays

    code, printed = doctor(*words[:3], env={"RAY_AUTH_MODE": "token", "HOME": str(tmp_path / "nobody")})
    assert code == 1 and "token" in printed and "Traceback" not in printed


def doctor(*words: object, env: dict[str, str]) -> tuple[int, str]:
    """The command's exit code and standard output."""
    argv = [sys.executable, "-m", "lingu_ray.doctor", *map(str, words)]
    done = subprocess.run(argv, env={**os.environ, **env}, capture_output=True, text=True, timeout=400)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, done.stdout


def test_a_ray_without_a_token_is_an_error(ray_cluster: str, data: Path, tmp_path: Path) -> None:
    """And so are more workers than the machine has room for; folder, data and network of one node are well."""
    run = config(data, tmp_path / "runs", ray={"num_workers": 6, "cpus_per_worker": 1.0})
    found = {one.check: one for one in examine(run)}
    assert {name for name, one in found.items() if one.level == "error"} == {"token", "resources"}
    assert "RAY_AUTH_MODE=token" in found["token"].cure and "ray.num_workers=6" in found["resources"].message
    assert found["output"].level == found["data"].level == found["network"].level == "ok"
