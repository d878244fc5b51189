"""Time to move a request's KV from the worker to the teacher actor, against a memcpy of the same bytes.

    python -m benchmarks.transport sizes=8,64,256 dtypes=float32,bfloat16 out=FOLDER

A time begins when the worker begins to send, and ends when the actor has the request, ready to compute. A ratio of 1 is
the speed of memcpy (numpy, one thread): *warm* into memory that was written before, *fresh* into memory that was just
allocated. Warm is faster, and meant where only "memcpy" is said. `ray.put alone` is Ray's copy into the object store
without a call: the difference to `object_store` is the call's time. On a GPU the KV is in its memory on both sides,
`cuda_ipc` opens the worker's memory (if that is not possible `left_out` says why), and `copy on the GPU` is a copy
within it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from benchmarks.report import BenchmarkConfig, Row, Timing, measure, plot_bars, publish, ratio, seconds_of, synchronize
from lingu_ray.config import RayConfig, Several
from lingu_ray.config.command_line import settings_alone
from lingu_ray.config.help_pages import Help
from lingu_ray.distill.continuation import TeacherRequest
from lingu_ray.errors import run_command
from lingu_ray.runtime.cluster.connect import connect
from lingu_ray.runtime.teacher.transport import Transport, TransportName, make_transport, to_bytes, unreadable

LAYERS, HEADS, DIMENSION = 32, 8, 64
QUERIES = 256
WARM, FRESH = "memcpy, warm", "memcpy, fresh"
OBJECT_STORE, PICKLED, NIXL, PUT = "object_store", "torch tensors, pickled", "nixl", "ray.put alone"
CUDA_IPC, COPY = "cuda_ipc", "copy on the GPU"
TRANSPORTS: dict[str, TransportName] = {OBJECT_STORE: "object_store", CUDA_IPC: "cuda_ipc", NIXL: "nixl"}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class TransportConfig(BenchmarkConfig):
    """Settings of the benchmark."""

    repeats: PositiveInt = Field(20, description="rounds of timing")
    sizes: Several[PositiveInt] = Field((8, 64, 256), description="MB (2^20 bytes) of KV")
    dtypes: Several[Literal["float32", "bfloat16"]] = Field(("float32", "bfloat16"), description="of the KV")


HELP = Help("python -m benchmarks.transport [key=value ...]", __doc__, TransportConfig)


def main(arguments: list[str]) -> None:
    """Measure, print, and write where asked."""
    options = settings_alone(arguments, HELP)
    connect(RayConfig())
    receivers, left_out = start_receivers()
    rows: list[Row] = []
    for dtype in options.dtypes:
        for megabytes in options.sizes:
            request = make_request(megabytes, getattr(torch, dtype))
            timings = measure(ways(request, receivers), options.repeats, warm_up=3, clock=lambda transfer: transfer())
            rows += [row_of(megabytes, dtype, name, timings) for name in timings]
    settings = options.recorded | {"ray": ray_settings()}
    publish("transport", rows, options.out, settings, {"left_out": left_out}, plot)
    ray.shutdown()


class Receiver:
    """A teacher actor that only receives, and answers with the time at which it had received everything."""

    def __init__(self, transport: Transport):
        self.transport = transport

    def request(self, fields: dict[str, Any], shared: Any) -> float:
        """A request as the teacher gets it, its KV on this side's device."""
        self.transport.receive(fields, shared).kv_L2CHE.to(DEVICE)
        synchronize()
        return time.monotonic()

    def read(self, shared: list[Any]) -> list[float]:
        """The numbers of a small tensor, as `unreadable` asks for them."""
        return make_transport(TRANSPORTS[CUDA_IPC]).open(shared).tolist()

    def tensors(self, kv: list[Tensor]) -> float:
        """Keys and values as a list of tensors."""
        return time.monotonic()


def make_request(megabytes: int, dtype: torch.dtype) -> TeacherRequest:
    """A request with that much KV, and small fields of the usual size."""
    donated = megabytes * 2**20 // (LAYERS * 2 * HEADS * DIMENSION * dtype.itemsize)
    names = [name for name in TeacherRequest.__dataclass_fields__ if name != "kv_L2CHE"]
    small = {name: torch.arange(donated if name.endswith("_P") else QUERIES) for name in names}
    kv_L2CHE = torch.randn(LAYERS, 2, donated, HEADS, DIMENSION).to(DEVICE, dtype)
    return TeacherRequest(**small, kv_L2CHE=kv_L2CHE)


def one_way(call: Callable[[], ray.ObjectRef]) -> float:
    """Seconds until the actor has received everything; both processes read the same monotonic clock."""
    begin = time.monotonic()
    return ray.get(call()) - begin


def ways(request: TeacherRequest, receivers: dict[str, Any]) -> dict[str, Callable[[], float]]:
    """Every way as a function that returns the seconds of one transfer."""
    source, kv_L2CHE = to_bytes(request.kv_L2CHE)["bytes"], request.kv_L2CHE
    warm = np.ones_like(source)

    def send(name: str) -> ray.ObjectRef:
        return receivers[name].request.remote(*make_transport(TRANSPORTS[name]).send(request)())

    layers = [tensor.cpu().clone() for layer in kv_L2CHE for tensor in layer]

    def pickled() -> ray.ObjectRef:
        return receivers[OBJECT_STORE].tensors.remote(layers)

    return {
        WARM: partial(seconds_of, lambda: np.copyto(warm, source)),
        FRESH: partial(seconds_of, lambda: np.copyto(np.empty_like(source), source)),
        **{name: partial(one_way, partial(send, name)) for name in receivers},
        PUT: partial(seconds_of, lambda: ray.put(source)),
        PICKLED: partial(one_way, pickled),
        **({COPY: partial(seconds_of, kv_L2CHE.clone)} if kv_L2CHE.is_cuda else {}),
    }


def start_receivers() -> tuple[dict[str, Any], dict[str, str]]:
    """An actor for every transport that runs here, and the reasons for those that are left out."""
    remote: Any = ray.remote
    names = [OBJECT_STORE, CUDA_IPC, *([NIXL] if find_spec("nixl") else [])]
    receivers = {
        name: remote(num_cpus=0, enable_tensor_transport=name == NIXL)(Receiver).remote(
            make_transport(TRANSPORTS[name])
        )
        for name in names
    }
    left_out = {} if NIXL in names else {NIXL: "not installed"}
    if why := unreadable(receivers[CUDA_IPC], torch.device(DEVICE)):
        del receivers[CUDA_IPC]
        left_out[CUDA_IPC] = why
    return receivers, left_out


def row_of(megabytes: int, dtype: str, name: str, timings: dict[str, Timing]) -> Row:
    """One line of the table."""
    timing = timings[name]
    low, high = timing.spread
    return {
        "MB": megabytes,
        "dtype": dtype,
        "way": name,
        "ms": timing.median * 1e3,
        "quartiles, ms": f"{low * 1e3:.3g}–{high * 1e3:.3g}",
        "GB/s": megabytes * 2**20 / 1e9 / timing.median,
        "of warm memcpy": ratio(timings[WARM], timing),
        "of fresh memcpy": ratio(timings[FRESH], timing),
    }


def ray_settings() -> dict[str, Any]:
    """Ray's settings that the times depend on."""
    names = ("RAY_free_objects_batch_size", "RAY_preallocate_plasma_memory")
    return {name: os.environ.get(name) for name in names} | {
        "object_store_bytes": ray.cluster_resources()["object_store_memory"]
    }


def plot(rows: list[Row], path: Path) -> None:
    """Share of the warm memcpy's bandwidth, by size and dtype."""
    groups = list(dict.fromkeys(f"{row['MB']} MB\n{row['dtype']}" for row in rows))
    names = [name for name in dict.fromkeys(row["way"] for row in rows) if name not in (WARM, FRESH)]
    series = {name: [row["of warm memcpy"] for row in rows if row["way"] == name] for name in names}
    title = "Worker to teacher: bandwidth as a share of memcpy's"
    plot_bars(path, title, "bandwidth ÷ warm memcpy", groups, series, reference=("80 %", 0.8))


if __name__ == "__main__":
    run_command(main)
