"""What scripts of clusters do that a small one does not show: a site's paths and proxy, more nodes than Ray lists."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import requests
import yaml
from ray._private.utils import validate_socket_filepath

from lingu_ray.config.command_line import load_config

CLUSTERS = Path(__file__).parents[2] / "clusters"
SBATCH = (CLUSTERS / "slurm/train.sbatch").read_text("utf-8")
SKYPILOT = yaml.safe_load((CLUSTERS / "skypilot.yaml").read_text("utf-8"))["run"]
UP = (CLUSTERS / "local/up.sh").read_text("utf-8")
RAY = """#!/bin/bash
# lists 150 nodes, or as many as --limit says, without it 100; says what else it is called with
if [[ $1 == list ]]; then
    limit=100
    while (($#)); do [[ $1 != --limit ]] || limit=$2; shift; done
    for ((node = 0; node < 150 && node < limit; node++)); do echo '"node_id": "n"'; done
else
    printf '%s\\n' "$@"
fi
"""


def function(script: str, name: str) -> str:
    """A function of a shell script."""
    found = re.search(rf"^{name}\(\) {{.*?^}}$", script, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[0]


@pytest.fixture
def shell(tmp_path: Path):
    """Runs lines of bash, with a Ray that only says what it is told, and variables of a job."""
    (tmp_path / "ray").write_text(RAY)
    (tmp_path / "ray").chmod(0o755)

    def run(text: str, **variables: str) -> subprocess.CompletedProcess[str]:
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        return subprocess.run(["bash", "-ec", text], env=path | variables, capture_output=True, text=True, check=True)

    return run


@pytest.mark.parametrize(("script", "count"), [(SBATCH, "SLURM_JOB_NUM_NODES"), (SKYPILOT, "SKYPILOT_NUM_NODES")])
def test_all_nodes_are_counted(shell, script: str, count: str) -> None:
    """Of 150 all, though Ray lists 100 unless it is told otherwise."""
    assert shell(f"{function(script, 'nodes_up')}\nnodes_up", **{count: "150"}).stdout.strip() == "150"


def test_skypilot_trains_on_every_gpu_unless_it_is_told_otherwise(shell) -> None:
    """Machines may have several; what ARGUMENTS say of the workers counts."""
    (submit,) = re.findall(r"^ray job submit.*?(?= \|\|)", SKYPILOT, re.MULTILINE | re.DOTALL)
    machines = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "4"}
    for more, workers in (("", 8), (" ray.num_workers=3", 3)):
        words = shell(submit, ARGUMENTS=f"demo{more}", **machines).stdout.split()
        assert load_config(words[words.index("lingu_ray.train") + 1 :]).ray.num_workers == workers


@pytest.mark.parametrize("script", [SBATCH, SKYPILOT, UP], ids=["slurm", "skypilot", "local"])
@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_no_proxy_is_asked_for_the_head(shell, script: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `requests`, as Ray's commands do; what the site itself reaches without its proxy stays so."""
    (line,) = re.findall(r"^ *(export no_proxy=.*)$", script, re.MULTILINE)
    exported = shell(f"{line.replace(chr(92), '')}\nenv", **{name: "localhost,.site"}).stdout.splitlines()
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in (one.split("=", 1) for one in exported if one.lower().startswith("no_proxy=")):
        monkeypatch.setenv(variable, value)
    hosts = ("127.0.0.1:8265", "mlflow.site", "elsewhere")
    asked = [requests.utils.should_bypass_proxies(f"http://{host}", None) for host in hosts]
    assert asked == [True, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("script", [SBATCH, UP], ids=["slurm", "local"])
def test_the_token_is_the_clusters_own(shell, tmp_path: Path, script: str) -> None:
    """Ray would take that of another cluster which the shell has exported, and `down.sh` could stop no job."""
    (tmp_path / "token").write_text("its-own")
    of_env = re.search(r"<<END\n.*?^END$", script, re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^(?:unset|export) RAY_AUTH_.*$", script, re.MULTILINE)
    told = f"source /dev/stdin {of_env[0]}" if of_env else "\n".join(lines)
    ask = (
        "from ray._private.authentication import http_token_authentication as by_http\n"
        "print(by_http.get_auth_headers_if_auth_enabled({}))"
    )
    text = f"{told}\n{shlex.quote(sys.executable)} -c {shlex.quote(ask)}"
    assert "Bearer its-own'" in shell(text, state=str(tmp_path), port="8265", RAY_AUTH_TOKEN="another").stdout


SESSION = "session_2026-10-01_12-00-00_123456_4194304/sockets/plasma_store"
JOB = {"SLURM_JOB_ID": "12345678", "SLURM_NODEID": "123", "SLURM_CPUS_PER_TASK": "8", "first_port": "10000"}
FUNCTIONS = ("port_of_node", "ray_folder", "remove_left_folders", "start_node")


def test_ports_are_below_those_of_outgoing_connections(shell) -> None:
    """Every node of every job has a block of 400 in it, and neighbors, in a job or by job, never the same one."""
    text = "\n".join(
        [
            function(SBATCH, "port_of_node"),
            "for SLURM_JOB_ID in {1200..1260}; do for node in {0..7}; do port_of_node $node; done; done",
        ]
    )
    ports = [int(line) for line in shell(text).stdout.split()]
    assert min(ports) == 10000 and max(ports) + 400 == 32000  # Linux gives 32768 and more to outgoing ones
    by_job = [set(ports[first : first + 8]) for first in range(0, len(ports), 8)]
    assert all(len(of_job) == 8 for of_job in by_job)
    first_two = [set(ports[first : first + 2]) for first in range(0, len(ports), 8)]
    assert not any(one & other for at, one in enumerate(first_two) for other in first_two[at + 1 : at + 20])


@pytest.mark.parametrize(
    ("tmpdir", "taken"),
    [
        (None, "/tmp"),
        ("/tmp", "/tmp"),
        ("/scratch/slurm-job.12345678", "/scratch/slurm-job.12345678"),
        ("/scratch/slurm-job.123456789", "/tmp"),
        ("/localscratch/someuser.12345678.0", "/tmp"),
        ("/scratch/jürgen.job.1234567", "/tmp"),  # of more bytes than characters
    ],
)
def test_ray_is_where_its_sockets_fit(shell, tmp_path: Path, tmpdir: str | None, taken: str) -> None:
    """In the job's own TMPDIR where Ray takes the sockets' paths there, and else in /tmp, which is said."""
    (tmp_path / ".shared-12345678").touch()
    places = {"state": str(tmp_path), "output_dir": "", "head_is_up": str(tmp_path), "head_address": "10.0.0.1"}
    given = {} if tmpdir is None else {"TMPDIR": tmpdir}
    makes_none = "make_own() { :; }"  # where tests may not write
    text = "\n".join([*(function(SBATCH, name) for name in FUNCTIONS), makes_none, "start_node"])
    done = shell(text, **JOB, **places, **given)
    (folder,) = re.findall(r"^--temp-dir=(.+)$", done.stdout, re.MULTILINE)
    assert folder == f"{taken}/lr-12345678-123"
    validate_socket_filepath(f"{folder}/{SESSION}")
    assert ("too long for Ray's sockets" in done.stderr) == (tmpdir is not None and tmpdir != taken)
    if tmpdir is not None and tmpdir != taken:
        with pytest.raises(OSError, match="cannot exceed 107 bytes"):
            validate_socket_filepath(f"{tmpdir}/lr-12345678-123/{SESSION}")


def test_the_folder_of_ray_is_the_users_own(shell, tmp_path: Path) -> None:
    """One that another user has made, or a link, would let them replace what runs; a requeued job finds its own."""
    call = f"{function(SBATCH, 'make_own')}\nmake_own"
    own, link, foreign = tmp_path / "own", tmp_path / "link", tmp_path / "foreign" if os.getuid() == 0 else Path("/usr")
    for _ in range(2):
        shell(f"{call} {own}")
        assert own.stat().st_mode & 0o777 == 0o700
    link.symlink_to(own)
    if os.getuid() == 0:
        foreign.mkdir()
        os.chown(foreign, 12345, -1)
    for refused in (link, foreign, tmp_path / "nowhere/folder"):
        with pytest.raises(subprocess.CalledProcessError) as error:
            shell(f"{call} {refused}", SLURMD_NODENAME="n1")
        assert f"{refused} on n1 cannot be made, or is another user's" in error.value.stderr
