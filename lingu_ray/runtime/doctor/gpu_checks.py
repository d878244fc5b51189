"""What the GPUs of the nodes mean for a run: driver and torch, processes that share a GPU, their memory."""

from __future__ import annotations

from collections.abc import Sequence

from lingu_ray.config import Config
from lingu_ray.runtime.doctor.finding import Finding, joined
from lingu_ray.runtime.doctor.gpu import MEND_DRIVER
from lingu_ray.runtime.doctor.node import ALLOCATOR, ATTENTIONS, NodeFacts

_START_MPS = "start MPS there (nvidia-cuda-mps-control -d)"


def check_drivers(nodes: Sequence[NodeFacts], config: Config, grows: bool) -> Finding:
    """Whether the nodes have GPUs that driver and torch can use. `grows`: an autoscaler may start nodes with GPUs."""
    if broken := [f"{node.node}: {node.gpu.smi_error}" for node in nodes if node.gpu.smi_error]:
        level = "warning" if config.ray.use_gpu is False else "error"
        return Finding("gpu", level, f"nvidia-smi fails; {joined(broken)}", f"{MEND_DRIVER}{_on_cpus(config)}")
    with_gpus = [node for node in nodes if node.gpu.gpus]
    return _cuda(with_gpus) if with_gpus else _no_gpu(config, grows)


def _no_gpu(config: Config, grows: bool) -> Finding:
    message = "no node has a GPU that NVIDIA's driver shows"
    if not config.ray.use_gpu:
        return Finding("gpu", "ok", message)
    if grows:
        cure = "once the autoscaler has started some, check again"
        return Finding("gpu", "warning", f"{message}: nodes that are not up yet are not checked", cure)
    return Finding("gpu", "error", message, f"add nodes with GPUs and NVIDIA's driver{_on_cpus(config)}")


def _on_cpus(config: Config) -> str:
    return "" if config.ray.use_gpu is False else "; or set ray.use_gpu=false to train on CPUs"


def _cuda(with_gpus: Sequence[NodeFacts]) -> Finding:
    if bad := [f"{node.node}: torch {node.versions['torch']}" for node in with_gpus if node.gpu.cuda is None]:
        return Finding("gpu", "error", f"built without CUDA: {joined(bad)}", "install a build of torch for CUDA there")
    old = [
        f"{node.node}: torch is built for CUDA {node.gpu.cuda}, driver {node.gpu.gpus[0].driver} serves "
        f"{node.gpu.driver_cuda}"
        for node in with_gpus
        if node.gpu.cuda and node.gpu.driver_cuda and _major(node.gpu.driver_cuda) < _major(node.gpu.cuda)
    ]
    if old:
        return Finding("gpu", "error", joined(old), "update the driver, or install torch for the driver's CUDA")
    if unseen := [f"{node.node}: {node.gpu.torch_error}" for node in with_gpus if node.gpu.torch_error]:
        cure = (
            "in a container, docker run --gpus all; a build of torch for that GPU; else see CUDA_VISIBLE_DEVICES, and "
            "what nvidia-smi says there"
        )
        return Finding("gpu", "error", f"nvidia-smi shows a GPU that torch cannot use; {joined(unseen)}", cure)
    shown = [
        f"{node.node}: {len(node.gpu.gpus)} × {node.gpu.gpus[0].name}, driver {node.gpu.gpus[0].driver}"
        for node in with_gpus
    ]
    return Finding("gpu", "ok", joined(shown))


def _compute_mode(nodes: Sequence[NodeFacts], config: Config) -> Finding:
    modes = sorted({(node.node, gpu.compute_mode, node.gpu.mps) for node in nodes for gpu in node.gpu.gpus})
    if bad := [f"{node}: {mode}" for node, mode, _ in modes if mode == "Prohibited"]:
        message = f"no process may use the GPU; {joined(bad)}"
        return Finding("compute mode", "error", message, "nvidia-smi -c DEFAULT on the node")
    alone = [f"{node}: {mode}" for node, mode, mps in modes if mode == "Exclusive_Process" and not mps]
    if alone and (sharers := _sharers(config)):
        cure = f"{_START_MPS}, or nvidia-smi -c DEFAULT there{_otherwise(config)}"
        return Finding("compute mode", "error", f"{sharers} are several processes on one GPU; {joined(alone)}", cure)
    return Finding("compute mode", "ok", joined(sorted({mode for _, mode, _ in modes})) or "no GPU")


def _mps(nodes: Sequence[NodeFacts], config: Config) -> Finding:
    with_gpus, sharers = [node for node in nodes if node.gpu.gpus], _sharers(config)
    if not with_gpus or not sharers:
        return Finding("MPS", "ok", "not needed: no GPU is shared")
    if without := [node.node for node in with_gpus if not node.gpu.mps]:
        message = f"{sharers} take turns on a GPU, and never compute at once; not running on {joined(without)}"
        return Finding("MPS", "warning", message, f"{_START_MPS}{_otherwise(config)}")
    return Finding("MPS", "ok", "running on every node with GPUs")


def _cuda_ipc(nodes: Sequence[NodeFacts], config: Config) -> Finding:
    lent = config.teacher.transport in ("auto", "cuda_ipc") and _sharers(config) == "student and teacher"
    with_gpus = [node for node in nodes if node.gpu.gpus]
    if not lent or not with_gpus:
        return Finding("cuda_ipc", "ok", "not used")
    bad = [
        f"{node.node} has {name}={value}"
        for node in with_gpus
        for name in ALLOCATOR
        if "expandable_segments:true" in (value := node.variables[name] or "").lower()
    ]
    if bad:
        message = f"memory of expandable segments opens only to processes that may trace each other; {joined(bad)}"
        cure = "leave expandable_segments out of it, or set teacher.transport=object_store"
        return Finding("cuda_ipc", "warning", message, cure)
    return Finding("cuda_ipc", "ok", "the allocator does not stand in its way")


def _attention(nodes: Sequence[NodeFacts], config: Config) -> Finding:
    name = config.train.attention
    with_gpus = [node for node in nodes if node.gpu.gpus]
    if name in ATTENTIONS and (bad := [node.node for node in with_gpus if name not in node.attentions]):
        message = f"train.attention={name}: {joined(bad)} has no package {ATTENTIONS[name]}"
        return Finding("attention", "error", message, "install flash-attn there, or leave train.attention out")
    return Finding("attention", "ok", f"{name}{': every GPU node has it' if name in ATTENTIONS and with_gpus else ''}")


def _sharers(config: Config) -> str:
    """Which processes of a run have one GPU together; empty where each has its own."""
    if config.ray.shares_gpus:
        return "workers"
    beside = config.uses_teacher and config.teacher.placement != "in_process" and config.ray.gpus_per_worker <= 1
    return "student and teacher" if beside and config.ray.use_gpu is not False else ""


def _otherwise(config: Config) -> str:
    return "" if config.ray.shares_gpus else ", or set teacher.placement=in_process"


def _major(version: str) -> int:
    return int(version.partition(".")[0])


GPU_CHECKS = (_compute_mode, _mps, _cuda_ipc, _attention)
