"""GPUs that Ray gives: whether torch computes on them, and how they are hidden from processes that get none."""

from __future__ import annotations

import socket
from functools import cache
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError

from lingu_ray.errors import UserError, user_error
from lingu_ray.runtime.autoscaler import Bundle
from lingu_ray.runtime.capacity import shown

HIDDEN = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
"""Runtime environment of a process that shall not compute on GPUs: Ray lets one without any see all of its node's."""


def check_gpus(bundle: Bundle) -> None:
    """Check in a process with these resources that torch computes on its GPU; without a GPU there is nothing to check.

    Raises:
        UserError: it does not; else training would end in an error of NCCL, and engines would compute on the CPU.
    """
    if bundle.get("GPU"):
        _check(tuple(bundle.items()), ray.get_runtime_context().gcs_address)


@cache  # it starts a process
def _check(resources: tuple[tuple[str, float], ...], cluster: str) -> None:
    bundle = dict(resources)
    task: Any = ray.remote(max_calls=1)(require_cuda)
    try:
        ray.get(task.options(num_cpus=bundle.get("CPU", 0), num_gpus=bundle["GPU"]).remote(shown(bundle)))
    except RayTaskError as error:
        raise user_error(error) or error from error


def require_cuda(given: str) -> None:
    """Raise UserError where torch cannot compute on this process's GPU; `given`: the process's resources."""
    try:
        torch.zeros(1, device="cuda")
    except (AssertionError, RuntimeError) as error:  # torch without CUDA raises the former
        why = str(error).strip().partition("\n")[0].rstrip(".")
        raise UserError(
            f"a process with {given} on {socket.gethostname()} cannot compute on its GPU: {why} (torch "
            f"{torch.__version__}). `lingu-ray doctor` checks every node; ray.use_gpu=false leaves the GPUs alone"
        ) from error
