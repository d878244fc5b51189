"""A node's GPUs as NVIDIA's own commands show them, and whether torch can use them; this process takes hold of none."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

_TORCH_WITHIN_S = 60.0


@dataclass(frozen=True)
class Gpu:
    """A GPU as NVIDIA's driver names it; `compute_mode` is Default, Exclusive_Process or Prohibited."""

    name: str
    driver: str
    compute_mode: str


@dataclass(frozen=True)
class GpuFacts:
    """A node's GPUs. `cuda`: what torch was built for; None: a CPU build. `driver_cuda`: the newest the driver serves.

    `torch_error`: why torch cannot use them; None where it can, and where there are none. `mps`: whether MPS, by which
    processes compute on one GPU at once, runs there.
    """

    gpus: Sequence[Gpu]
    cuda: str | None
    driver_cuda: str | None
    torch_error: str | None
    mps: bool


def gpu_facts() -> GpuFacts:
    """Those of this machine."""
    found, cuda = gpus(), torch_cuda()
    error = torch_error() if found and cuda else None
    return GpuFacts(found, cuda, driver_cuda(), error, bool(found) and mps_runs())


def gpus() -> list[Gpu]:
    """This machine's GPUs; PyTorch would take hold of one to tell."""
    printed = _printed("nvidia-smi", "--query-gpu=name,driver_version,compute_mode", "--format=csv,noheader")
    return [Gpu(*(part.strip() for part in line.split(","))) for line in (printed or "").splitlines()]


def driver_cuda() -> str | None:
    """The newest version of CUDA that the driver serves; None without a driver."""
    found = re.search(r"CUDA (?:UMD )?Version:\s*([\d.]+)", _printed("nvidia-smi") or "")
    return found[1] if found else None


def mps_runs() -> bool:
    """Whether MPS's control daemon answers, at `CUDA_MPS_PIPE_DIRECTORY`."""
    return _printed("nvidia-cuda-mps-control", given="get_server_list\n") is not None


def torch_cuda() -> str | None:
    """The CUDA version that torch was built for, without importing it; None for a CPU build."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    return runpy.run_path(str(Path(spec.origin).with_name("version.py"))).get("cuda")


def torch_error() -> str | None:
    """What a new process's torch says where it finds no GPU; None where it finds one."""
    look = [sys.executable, "-c", "import torch; torch.cuda.is_available() or torch.cuda.init()"]
    try:
        done = subprocess.run(look, capture_output=True, text=True, timeout=_TORCH_WITHIN_S, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {_TORCH_WITHIN_S:g} s"
    if not done.returncode:
        return None
    said = re.search(r"^\w*Error: .+", done.stderr, re.MULTILINE)
    return said[0] if said else f"it ends with exit code {done.returncode}"


def _printed(*command: str, given: str = "") -> str | None:
    """What a command prints; None where it is missing or fails, as NVIDIA's do without a driver."""
    try:
        return subprocess.run(command, input=given, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
