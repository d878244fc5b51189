"""Memory and speed of devices: GPUs by their vendors' figures, this machine's CPU by a measurement."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from lingu_ray.errors import UserError
from lingu_ray.runtime.cluster.linux import cores, host_memory

GIB = 2**30
_TIME_S = 0.5


@dataclass(frozen=True)
class Device:
    """A device: bytes of its memory, and what a training step reaches on it: operations a second of matrix products in
    each precision, and bytes a second of memory traffic (`bandwidth`).
    """

    name: str
    memory: float
    bf16: float
    fp32: float
    bandwidth: float

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.name != "cpu"

    def rate(self, bf16: bool) -> float:
        """Operations a second of matrix products."""
        return self.bf16 if bf16 else self.fp32

    def shared_by(self, workers: int) -> Device:
        """The device as one of so many workers has it while all compute on it: with its part of the rates."""
        parts = {name: getattr(self, name) / workers for name in ("bf16", "fp32", "bandwidth")}
        return replace(self, **parts)


def _gpu(name: str, gib: float, bf16: float, fp32: float, bandwidth: float) -> Device:
    """A GPU by its vendor's peaks, in 10¹² a second, times the shares of them that a model reaches on an H100."""
    return Device(name, gib * GIB, 0.38e12 * bf16, 0.70e12 * fp32, 0.78e12 * bandwidth)


# Memory as the driver reports it; dense products without sparsity, bf16 with float32 sums, fp32 without TF32, by the
# makers' data sheets: H100 and H200 as SXM5, A100 as SXM4 with 80 GB. None was measured here.
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("h100", 79, bf16=989, fp32=67, bandwidth=3.35),
        _gpu("h200", 140, bf16=989, fp32=67, bandwidth=4.8),
        _gpu("a100", 79, bf16=312, fp32=19.5, bandwidth=2.04),
        _gpu("l4", 22, bf16=121, fp32=30.3, bandwidth=0.3),
        _gpu("rtx4090", 23.5, bf16=165, fp32=82.6, bandwidth=1.01),
    )
}
"""Known GPUs by name."""


def gpu_here() -> Device | None:
    """This machine's GPU with its real memory; None without one. Raises UserError for one that `GPUS` does not have."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    words = properties.name.lower().replace("rtx ", "rtx")
    # whole words: an L40S is no L4, and a GH200 no H200
    found = next((gpu for name, gpu in GPUS.items() if re.search(rf"\b{name}\b", words)), None)
    if found is None:
        raise UserError(f"device: no figures for {properties.name}; name the nearest of {', '.join(GPUS)}")
    return replace(found, memory=properties.total_memory)


def measured_cpu(width: int, inner: int, rows: int) -> Device:
    """This machine's CPU, timed for a second or two on all cores: MLP layers of these widths, and copies of memory."""
    before = torch.get_num_threads()
    torch.set_num_threads(cores())
    try:
        bf16, fp32 = (_matmul_rate(width, inner, rows, bf16) for bf16 in (True, False))
        bandwidth = _copy_rate()
    finally:
        torch.set_num_threads(before)
    return Device("cpu", host_memory(), bf16, fp32, bandwidth)


def _matmul_rate(width: int, inner: int, rows: int, bf16: bool) -> float:
    """Operations a second of two linear layers, forward and backward."""
    layers = nn.Sequential(nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False))
    input_ND = torch.randn(rows, width, requires_grad=True)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output_ND = layers(input_ND)
        output_ND.float().sum().backward()

    return 3 * 2 * 2 * rows * width * inner / _seconds(run)


def _copy_rate() -> float:
    """Bytes a second that a copy reads and writes."""
    source, target = torch.ones(2, 2**24)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source))


def _seconds(run: Callable[[], object]) -> float:
    """Seconds of the fastest call within `_TIME_S`."""
    run()
    shortest, end = float("inf"), time.perf_counter() + _TIME_S
    while time.perf_counter() < end:
        begin = time.perf_counter()
        run()
        shortest = min(shortest, time.perf_counter() - begin)
    return shortest
