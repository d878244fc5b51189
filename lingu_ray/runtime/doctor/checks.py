"""What the facts of the nodes mean for a run: one finding a check, with what to do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from lingu_ray.config import Config
from lingu_ray.runtime.doctor.finding import Finding, joined
from lingu_ray.runtime.doctor.gpu_checks import GPU_CHECKS, check_drivers
from lingu_ray.runtime.doctor.node import NodeFacts
from lingu_ray.runtime.doctor.paths import needed_paths
from lingu_ray.runtime.run_folder.job_stop import ADVISED_S, STOP_WAIT

SHARED_MEMORY = 2**30
"""Bytes of /dev/shm below which Ray keeps objects on disk, and NCCL may not start."""


def check_nodes(nodes: Sequence[NodeFacts], config: Config, elsewhere: bool, grows: bool) -> list[Finding]:
    """All findings about the nodes.

    `elsewhere`: of a cluster that was started elsewhere; `grows`: of one whose autoscaler may start others.
    """
    checks = (_versions, _output, _paths, partial(check_drivers, grows=grows), *GPU_CHECKS, _shared_memory, _token)
    found = [check(nodes, config) for check in checks]
    return [*found, _fast_memory(nodes), _stop_time(nodes)] if elsewhere else found


def _versions(nodes: Sequence[NodeFacts], config: Config) -> Finding:
    first = nodes[0]
    other = [
        f"{node.node} has {name} {value}, {first.node} has {first.versions[name]}"
        for node in nodes[1:]
        for name, value in node.versions.items()
        if value != first.versions[name]
    ]
    if other:
        return Finding("versions", "error", joined(other), "install the same environment on every node")
    return Finding("versions", "ok", ", ".join(f"{name} {value}" for name, value in first.versions.items()))


def _output(nodes: Sequence[NodeFacts], config: Config) -> Finding:
    where = f"output_dir={config.output_dir}"
    if bad := [f"{node.node}: {node.output_error}" for node in nodes if node.output_error]:
        cure = "give a folder of storage that every node mounts at the same path, writable for the user of Ray"
        return Finding("output", "error", f"{where}: {joined(bad)}", cure)
    return Finding("output", "ok", f"{where}: every node writes there")


def _paths(nodes: Sequence[NodeFacts], config: Config) -> Finding:
    lacking = {
        f"{path} ({setting})": [node for node in nodes if path in node.missing]
        for setting, path in needed_paths(config).items()
    }
    nowhere = [f"no node has {what}" for what, without in lacking.items() if len(without) == len(nodes)]
    somewhere = [(node, what) for what, without in lacking.items() if len(without) < len(nodes) for node in without]
    on_others = [f"{node.node} has no {what}" for node, what in somewhere if not node.is_driver]
    cure = "put models and data on storage that every node mounts"
    if nowhere or on_others:
        mend = f"correct the setting, or {cure}" if nowhere else cure
        return Finding("data", "error", joined(nowhere + on_others), mend)
    if somewhere:
        message = f"a run that is started here, on {somewhere[0][0].node}, does not find what the other nodes have"
        return Finding("data", "warning", f"{message}: {joined([what for _, what in somewhere])}", cure)
    return Finding("data", "ok", "every node has the files and folders that the settings name")


def _shared_memory(nodes: Sequence[NodeFacts], config: Config) -> Finding:
    smallest = min(node.shared_memory for node in nodes)
    if small := [node for node in nodes if node.shared_memory < SHARED_MEMORY]:
        sizes = joined([f"{node.node} has {node.shared_memory / 2**20:.0f} MiB" for node in small])
        cure = "docker run --shm-size=8g; on Kubernetes an emptyDir with medium: Memory at /dev/shm"
        return Finding("/dev/shm", "warning", f"too small for KV between processes: {sizes}", cure)
    return Finding("/dev/shm", "ok", f"{smallest / 2**30:.0f} GiB" + (" or more" if len(nodes) > 1 else ""))


def _token(nodes: Sequence[NodeFacts], config: Config) -> Finding:
    if bad := [node.node for node in nodes if not node.token]:
        message = f"off: who reaches a port of Ray runs any code on {joined(bad)}"
        return Finding("token", "error", message, "RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN_PATH on every node")
    return Finding("token", "ok", "asked for on every node")


def _fast_memory(nodes: Sequence[NodeFacts]) -> Finding:
    name = "RAY_free_objects_batch_size"
    if bad := [node.node for node in nodes if node.variables[name] != "1"]:
        message = f"the memory of one request does not serve the next on {joined(bad)}"
        return Finding("environment", "warning", message, f"{name}=1 in the environment of `ray start`")
    return Finding("environment", "ok", f"{name}=1 on every node")


def _stop_time(nodes: Sequence[NodeFacts]) -> Finding:
    if bad := [node.node for node in nodes if not _at_least(node.variables[STOP_WAIT], ADVISED_S)]:
        message = f"`ray job stop` kills a run before it has saved; not set, or below {ADVISED_S}: {joined(bad)}"
        cure = f"{STOP_WAIT}={ADVISED_S} in env_vars of the job's runtime environment, or in that of `ray start`"
        return Finding("stopping", "warning", message, cure)
    return Finding("stopping", "ok", f"{STOP_WAIT} is {ADVISED_S} or more")


def _at_least(value: str | None, least: int) -> bool:
    return value is not None and value.isdecimal() and int(value) >= least
