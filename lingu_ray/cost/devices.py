"""What devices can hold and do: vendors' figures for GPUs, measured on the spot for the CPU."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch
from torch import nn

from lingu_ray.errors import UserError
from lingu_ray.runtime.cores import cores

GIB = 2**30
_TIME_S = 0.5


@dataclass(frozen=True)
class Device:
    """A device: bytes that programs may take, products in operations a second by precision, memory in bytes a second.

    `bf16`, `fp32` and `bandwidth` are the vendor's peaks of a GPU, and what was measured of a CPU; of which a step
    reaches the shares `products` and `moving`.
    """

    name: str
    memory: float
    bf16: float
    fp32: float
    bandwidth: float
    products: float = 0.38
    moving: float = 0.78

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.name != "cpu"

    def rate(self, bf16: bool) -> float:
        """Operations a second that a step's products reach."""
        # without tensor cores products come closer to the peak
        return self.bf16 * self.products if bf16 else self.fp32 * max(self.products, 0.7)


# Memory as the driver reports it; dense products without sparsity, bf16 with float32 sums, fp32 without TF32, from the
# vendor's data sheets: H100 and H200 as SXM5, A100 as SXM4 with 80 GB. The shares are those of a model of an H100 (300
# to 450 of 989 TFLOP/s, 2.6 of 3.35 TB/s), and have not been measured.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Device("h100", 79 * GIB, 989e12, 67e12, 3.35e12),
        Device("h200", 140 * GIB, 989e12, 67e12, 4.8e12),
        Device("a100", 79 * GIB, 312e12, 19.5e12, 2.04e12),
        Device("l4", 22 * GIB, 121e12, 30.3e12, 0.3e12),
        Device("rtx4090", 23.5 * GIB, 165e12, 82.6e12, 1.01e12),
    )
}
"""Table of known GPUs by name."""


def device_here() -> str:
    """The name of this machine's device. Raises UserError for a GPU that is not in the table."""
    if not torch.cuda.is_available():
        return "cpu"
    name = torch.cuda.get_device_name().lower().replace(" ", "")
    found = next((known for known in GPUS if known in name), None)
    if found is None:
        raise UserError(f"device: no figures for {torch.cuda.get_device_name()}; name the nearest of {', '.join(GPUS)}")
    return found


def measured_cpu(width: int, inner: int, rows: int) -> Device:
    """This machine's CPU: layers of a decoder's shape and copies, timed with all of its cores for a second or two."""
    before = torch.get_num_threads()
    torch.set_num_threads(cores())
    try:
        bf16, fp32 = (_products(width, inner, rows, bf16) for bf16 in (True, False))
        bandwidth = _copies()
    finally:
        torch.set_num_threads(before)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device("cpu", memory, bf16, fp32, bandwidth, products=1.0, moving=1.0)


def _products(width: int, inner: int, rows: int, bf16: bool) -> float:
    """Operations a second of two layers, forward and backward."""
    layers = nn.Sequential(nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False))
    input_ND = torch.randn(rows, width, requires_grad=True)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output_ND = layers(input_ND)
        output_ND.float().sum().backward()

    return 3 * 2 * 2 * rows * width * inner / _seconds(run)


def _copies() -> float:
    """Bytes a second of a copy, what is read and what is written counted."""
    source, target = torch.ones(2, 2**24)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source))


def _seconds(run: object) -> float:
    """The shortest of several calls."""
    assert callable(run)
    run()
    shortest, end = float("inf"), time.perf_counter() + _TIME_S
    while time.perf_counter() < end:
        begin = time.perf_counter()
        run()
        shortest = min(shortest, time.perf_counter() - begin)
    return shortest
