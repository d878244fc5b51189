"""What the facts of the nodes mean for a run: one finding a check, with what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lingu_ray.config import Config
from lingu_ray.runtime.doctor.node import NodeFacts

SHARED_MEMORY = 2**30
"""Bytes of /dev/shm below which Ray keeps objects on disk, and NCCL may not start."""
STOP_S = 120
"""Seconds that a job should get to save after `ray job stop`; Ray's own are 3."""


@dataclass(frozen=True)
class Finding:
    """What a check found; `cure` says what to do about a warning or an error."""

    check: str
    level: Literal["ok", "warning", "error"]
    message: str
    cure: str = ""


def check_nodes(nodes: Sequence[NodeFacts], config: Config, joined: bool) -> list[Finding]:
    """All findings about the nodes. `joined`: of a cluster that was started elsewhere."""
    found = [
        check(nodes, config) for check in (_versions, _output, _paths, _cuda, _compute_mode, _shared_memory, _token)
    ]
    return [*found, _fast_memory(nodes), _stop_time(nodes)] if joined else found


def _versions(nodes: Sequence[NodeFacts], config: Config) -> Finding:
    first = nodes[0]
    other = [
        f"{node.node} has {name} {value}, {first.node} has {first.versions[name]}"
        for node in nodes[1:]
        for name, value in node.versions.items()
        if value != first.versions[name]
    ]
    if other:
        return Finding("versions", "error", _joined(other), "install the same environment on every node")
    return Finding("versions", "ok", ", ".join(f"{name} {value}" for name, value in first.versions.items()))


def _output(nodes: Sequence[NodeFacts], config: Config) -> Finding:
    where = f"output_dir={config.output_dir}"
    if bad := [f"{node.node}: {node.output_error}" for node in nodes if node.output_error]:
        cure = "give a folder of storage that every node mounts at the same path, writable for the user of Ray"
        return Finding("output", "error", f"{where}: {_joined(bad)}", cure)
    return Finding("output", "ok", f"{where}: every node writes there")


def _paths(nodes: Sequence[NodeFacts], config: Config) -> Finding:
    if bad := [f"{node.node} has no {path}" for node in nodes for path in node.missing]:
        return Finding("data", "error", _joined(bad), "put models and data on storage that every node mounts")
    return Finding("data", "ok", "every node has the models and data that are here")


def _cuda(nodes: Sequence[NodeFacts], config: Config) -> Finding:
    with_gpus = [node for node in nodes if node.gpus]
    if not with_gpus:
        return Finding("gpu", "warning" if config.ray.use_gpu else "ok", "no node has a GPU that NVIDIA's driver shows")
    if bad := [f"{node.node}: torch {node.versions['torch']}" for node in with_gpus if node.cuda is None]:
        return Finding("gpu", "error", f"built without CUDA: {_joined(bad)}", "install a build of torch for CUDA there")
    old = [
        f"{node.node}: torch is built for CUDA {node.cuda}, driver {node.gpus[0].driver} serves {node.driver_cuda}"
        for node in with_gpus
        if node.cuda and node.driver_cuda and _major(node.driver_cuda) < _major(node.cuda)
    ]
    if old:
        return Finding("gpu", "error", _joined(old), "update the driver, or install torch for the driver's CUDA")
    shown = [f"{node.node}: {len(node.gpus)} × {node.gpus[0].name}, driver {node.gpus[0].driver}" for node in with_gpus]
    return Finding("gpu", "ok", _joined(shown))


def _compute_mode(nodes: Sequence[NodeFacts], config: Config) -> Finding:
    shared = config.ray.shares_gpus or (config.uses_teacher and config.teacher.placement != "in_process")
    refused = ("Prohibited", "Exclusive_Process") if shared else ("Prohibited",)
    modes = {(node.node, gpu.compute_mode) for node in nodes for gpu in node.gpus}
    if bad := [f"{node}: {mode}" for node, mode in sorted(modes) if mode in refused]:
        also = ", or teacher.placement=in_process" if shared else ""
        why = "student and teacher are two processes on one GPU" if shared else "no process may use the GPU"
        return Finding("compute mode", "error", f"{why}; {_joined(bad)}", f"nvidia-smi -c DEFAULT on the node{also}")
    return Finding("compute mode", "ok", _joined(sorted({mode for _, mode in modes})) or "no GPU")


def _shared_memory(nodes: Sequence[NodeFacts], config: Config) -> Finding:
    smallest = min(node.shared_memory for node in nodes)
    if small := [node for node in nodes if node.shared_memory < SHARED_MEMORY]:
        sizes = _joined([f"{node.node} has {node.shared_memory / 2**20:.0f} MiB" for node in small])
        cure = "docker run --shm-size=8g; on Kubernetes an emptyDir with medium: Memory at /dev/shm"
        return Finding("/dev/shm", "warning", f"too small for KV between processes: {sizes}", cure)
    return Finding("/dev/shm", "ok", f"{smallest / 2**30:.0f} GiB" + (" or more" if len(nodes) > 1 else ""))


def _token(nodes: Sequence[NodeFacts], config: Config) -> Finding:
    if bad := [node.node for node in nodes if not node.token]:
        message = f"off: who reaches a port of Ray runs any code on {_joined(bad)}"
        return Finding("token", "error", message, "RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN_PATH on every node")
    return Finding("token", "ok", "asked for on every node")


def _fast_memory(nodes: Sequence[NodeFacts]) -> Finding:
    name = "RAY_free_objects_batch_size"
    if bad := [node.node for node in nodes if node.variables[name] != "1"]:
        message = f"the memory of one request does not serve the next on {_joined(bad)}"
        return Finding("environment", "warning", message, f"{name}=1 in the environment of `ray start`")
    return Finding("environment", "ok", f"{name}=1 on every node")


def _stop_time(nodes: Sequence[NodeFacts]) -> Finding:
    name = "RAY_JOB_STOP_WAIT_TIME_S"
    if bad := [node.node for node in nodes if not _at_least(node.variables[name], STOP_S)]:
        message = f"`ray job stop` kills a run before it has saved; not set, or below {STOP_S}: {_joined(bad)}"
        cure = f"{name}={STOP_S} in env_vars of the job's runtime environment, or in that of `ray start`"
        return Finding("stopping", "warning", message, cure)
    return Finding("stopping", "ok", f"{name} is {STOP_S} or more")


def _at_least(value: str | None, least: int) -> bool:
    return value is not None and value.isdecimal() and int(value) >= least


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _joined(texts: Sequence[str]) -> str:
    return "; ".join(texts)
