"""GPUs that Ray gives: whether torch computes on them, and how they are hidden from processes that get none."""

from __future__ import annotations

import logging
import socket
from functools import cache
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from lingu_ray.config import Attention, RayConfig, TrainConfig
from lingu_ray.errors import UserError, first_line, user_error
from lingu_ray.runtime.cluster.autoscaler import Bundle
from lingu_ray.runtime.cluster.capacity import shown
from lingu_ray.runtime.doctor.gpu import MEND_DRIVER, gpus
from lingu_ray.waiting import RAY_STATUS, waiting

log = logging.getLogger(__name__)

HIDDEN = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
"""Runtime environment of a process that shall not compute on GPUs: Ray lets one without any see all of its node's."""


def check_gpus(bundle: Bundle, attention: Attention = "sdpa", precision: str = "auto") -> None:
    """Check in a process with these resources that torch computes on its GPU, and the attention, too.

    Without a GPU there is nothing to check. A precision that the GPU only emulates is a warning.

    Raises:
        UserError: it does not; else training would end in an error of NCCL or flash-attn, and engines would compute on
            the CPU.
    """
    if bundle.get("GPU"):
        emulates = _check(tuple(bundle.items()), attention, ray.get_runtime_context().gcs_address)
        if emulates and precision == "bf16":
            log.warning(
                "train.precision=bf16: a %s only emulates it, slower than fp32; train.precision=auto takes fp32 there",
                emulates,
            )


def check_driver(settings: RayConfig, use_gpu: bool) -> None:
    """Check that a run which computes on CPUs, without having been told to, does not because of a broken driver here.

    Raises:
        UserError: this machine has a GPU, and nvidia-smi fails.
    """
    if use_gpu or settings.use_gpu is not None:
        return
    _, smi_error = gpus()
    if smi_error:
        raise UserError(
            f"this machine has a GPU that Ray does not see, for nvidia-smi fails: {smi_error}. {MEND_DRIVER}; or set "
            "ray.use_gpu=false to train on CPUs"
        )


@cache  # it starts a process
def _check(resources: tuple[tuple[str, float], ...], attention: Attention, cluster: str) -> str | None:
    """The GPU's name, where it emulates bf16."""
    bundle = dict(resources)
    log.info("trying whether torch computes with %s; waits until they are free", shown(bundle))
    remote: Any = ray.remote(max_calls=1)(_require)
    outside = PlacementGroupSchedulingStrategy(PlacementGroup.empty())  # a trial's own group has no GPU
    task = remote.options(num_cpus=bundle.get("CPU", 0), num_gpus=bundle["GPU"], scheduling_strategy=outside)
    try:
        with waiting(f"{shown(bundle)} to compute", RAY_STATUS):
            return ray.get(task.remote(shown(bundle), attention))
    except RayTaskError as error:
        raise user_error(error) or error from error


def _require(given: str, attention: Attention) -> str | None:
    require_cuda(given)
    require_package(attention)
    return require_units(attention)


def require_cuda(given: str) -> None:
    """Raise UserError where torch cannot compute on this process's GPU; `given`: the process's resources."""
    try:
        torch.zeros(1, device="cuda")
    except (AssertionError, RuntimeError) as error:  # torch without CUDA raises the former
        why = first_line(error).rstrip(".")
        raise UserError(
            f"a process with {given} on {socket.gethostname()} cannot compute on its GPU: {why} (torch "
            f"{torch.__version__}). `lingu-ray doctor` checks every node; ray.use_gpu=false leaves the GPUs alone"
        ) from error


def require_package(attention: Attention) -> None:
    """Raise UserError where the package of the student's attention is not installed in this process's environment."""
    available = {"flash_attention_2": is_flash_attn_2_available, "flash_attention_3": is_flash_attn_3_available}
    if attention in available and not available[attention]():
        raise UserError(
            f"train.attention={attention}: {socket.gethostname()} has no such package: install flash-attn on every "
            "node (its page says how), or leave train.attention out"
        )


def require_units(attention: Attention) -> str | None:
    """The name of this process's GPU, where it has no units for bf16.

    Raises:
        UserError: the student's attention needs them.
    """
    if computes_in_bf16(torch.device("cuda")):
        return None
    name = torch.cuda.get_device_name()
    if attention != "sdpa":
        raise UserError(
            f"train.attention={attention} needs a GPU with units for bf16 (Ampere or newer), and "
            f"{socket.gethostname()} has a {name}: leave train.attention out"
        )
    return name


def computes_in_bf16(gpu: torch.device) -> bool:
    """Whether this GPU has units for bf16; one without (V100, T4) emulates it."""
    with torch.cuda.device(gpu):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def check_attention(settings: TrainConfig, use_gpu: bool) -> None:
    """Raise UserError where the student's attention cannot compute in the run's precision, or without a GPU."""
    if settings.attention != "sdpa" and not (use_gpu and settings.precision == "bf16"):
        raise UserError(
            f"train.attention={settings.attention} computes in bf16 on GPUs, and this run is {settings.precision} on "
            f"{'GPUs' if use_gpu else 'CPUs'}: set train.precision=bf16, and have GPUs, or leave train.attention out"
        )
