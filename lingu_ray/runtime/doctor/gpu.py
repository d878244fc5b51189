"""A node's GPUs as NVIDIA's own commands show them, and whether torch can use them; this process takes hold of none."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path

from lingu_ray.runtime.cluster.linux import told

_TORCH_WITHIN_S = 60.0
_NVIDIA_WITHIN_S = 30.0

MEND_DRIVER = "restart the machine if its driver was updated, else install the driver again"
"""What helps where nvidia-smi fails."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as NVIDIA's driver names it; `compute_mode` is Default, Exclusive_Process or Prohibited."""

    name: str
    driver: str
    compute_mode: str


@dataclass(frozen=True)
class GpuFacts:
    """A node's GPUs. `cuda`: what torch was built for; None: a CPU build. `driver_cuda`: the newest the driver serves.

    `smi_error`: what nvidia-smi says where it is there and fails; None where it works, and where there is none.
    `torch_error`: why torch cannot use them; None where it can, and where there are none. `mps`: whether MPS, by which
    processes compute on one GPU at once, runs there.
    """

    gpus: Sequence[Gpu]
    smi_error: str | None
    cuda: str | None
    driver_cuda: str | None
    torch_error: str | None
    mps: bool


def gpu_facts() -> GpuFacts:
    """Those of this machine."""
    (found, smi_error), cuda = gpus(), torch_cuda()
    error = torch_error() if found and cuda else None
    return GpuFacts(found, smi_error, cuda, driver_cuda(), error, bool(found) and mps_runs())


def gpus() -> tuple[list[Gpu], str | None]:
    """This machine's GPUs, and what nvidia-smi says where there is one and it fails, as it does with a broken driver.

    PyTorch would take hold of a GPU to tell. Images for GPUs have nvidia-smi on machines without one, too.
    """
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_mode", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_NVIDIA_WITHIN_S, check=False)
    except OSError:
        return [], None
    except subprocess.TimeoutExpired:
        return [], f"no answer within {_NVIDIA_WITHIN_S:g} s"
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines()]
    if done.returncode or not all(len(row) == len(fields(Gpu)) for row in rows):
        if not has_device():
            return [], None
        printed = " ".join(f"{done.stdout} {done.stderr}".split())
        return [], f"{printed or 'nothing'} (exit code {done.returncode})"
    return [Gpu(*row) for row in rows], None


def has_device(bus: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether Linux sees a device of NVIDIA for graphics or computing; true where that is not told."""
    if not bus.is_dir():
        return True
    known = [[told(device / name) for name in ("vendor", "class")] for device in bus.iterdir()]
    return any(vendor == "0x10de" and kind.startswith("0x03") for vendor, kind in known)


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


_LOOK = """
import json, torch
torch.cuda.is_available() or torch.cuda.init()
gpus = [(torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)) for i in range(torch.cuda.device_count())]
print(json.dumps([gpus, torch.cuda.get_arch_list() if torch.version.cuda else []]))
"""


def torch_error() -> str | None:
    """What a new process's torch says where it finds no GPU, or one that it has no code for; None where it finds some.

    It reads the GPUs' properties, and so needs no place on them.
    """
    look = [sys.executable, "-c", _LOOK]
    try:
        done = subprocess.run(look, capture_output=True, text=True, timeout=_TORCH_WITHIN_S, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {_TORCH_WITHIN_S:g} s"
    if not done.returncode:
        return without_code(*json.loads(done.stdout.splitlines()[-1]))
    said = re.search(r"^\w*Error: .+", done.stderr, re.MULTILINE)
    return said[0] if said else f"it ends with exit code {done.returncode}"


def without_code(found: Sequence[tuple[str, Sequence[int]]], built: Sequence[str]) -> str | None:
    """What is wrong with the first GPU, of names and compute capabilities, that no architecture of torch's runs on.

    An architecture is `sm_80`, code for 8.0 and later ones of 8, or `compute_80`, compiled for 8.0 or later when it is
    loaded.
    """
    for name, (major, minor) in found:
        if built and not any(_runs_on(arch, major, minor) for arch in built):
            return f"a {name} has compute capability {major}.{minor}, and this torch is built for {', '.join(built)}"
    return None


def _runs_on(arch: str, major: int, minor: int) -> bool:
    kind, _, number = arch.partition("_")
    of_major, of_minor = divmod(int(re.sub(r"\D", "", number)), 10)
    later = (of_major, of_minor) <= (major, minor)
    return later if kind == "compute" else later and of_major == major


def _printed(*command: str, given: str = "") -> str | None:
    """What a command prints; None where it is missing or fails, as NVIDIA's do without a driver."""
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=_NVIDIA_WITHIN_S, check=True
        )
        return done.stdout
    except (OSError, subprocess.SubprocessError):
        return None
