"""AdamW over the parameter groups, with warm-up and cosine decay."""

from __future__ import annotations

import itertools
import math

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from lingu_ray.config import TrainConfig
from lingu_ray.config.numbers import share_of
from lingu_ray.distill.lora import is_adapter
from lingu_ray.distill.student import Student


def freeze(student: Student, settings: TrainConfig) -> dict[str, list[nn.Parameter]]:
    """Let only those parameters require a gradient that the settings train; these, by group."""
    trained = {}
    for name, named in student.parameter_groups().items():
        rate = getattr(settings.learning_rates, name)
        adapters_only = name == "decoder" and settings.lora is not None
        for parameter_name, parameter in named:
            parameter.requires_grad_(rate > 0 and (is_adapter(parameter_name) or not adapters_only))
        trained[name] = [parameter for _, parameter in named if parameter.requires_grad]
    return trained


def make_optimizer(student: Student, settings: TrainConfig) -> torch.optim.AdamW:
    """AdamW with one learning rate a group; groups with rate 0 are frozen; only matrices decay.

    With `settings.lora` the adapters are the decoder's group, and its own weights are frozen.
    """
    groups = []
    for name, trained in freeze(student, settings).items():
        rate = getattr(settings.learning_rates, name)
        # sharded and replicated tensors cannot be in one fused update
        for decay, sharded in itertools.product((True, False), (True, False)):
            parameters = [p for p in trained if (p.ndim > 1) is decay and isinstance(p, DTensor) is sharded]
            if parameters:
                weight_decay = settings.weight_decay if decay else 0.0
                groups.append({"params": parameters, "lr": rate, "peak": rate, "weight_decay": weight_decay})
    return torch.optim.AdamW(groups, betas=settings.betas, fused=True)  # one pass over memory, on CPUs too


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All parameters that the optimizer updates."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def lr_factor(step: int, settings: TrainConfig) -> float:
    """Share of the peak learning rate at `step` (0-based): linear warm-up, then cosine to `min_lr`."""
    warmup = math.ceil(share_of(settings.warmup, settings.steps))
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, settings.steps - 1 - warmup)
    return settings.min_lr + (1 - settings.min_lr) * (1 + math.cos(math.pi * min(done, 1.0))) / 2


def set_learning_rates(optimizer: torch.optim.Optimizer, step: int, settings: TrainConfig) -> float:
    """Set every group's rate for `step`; returns the share of the peak."""
    factor = lr_factor(step, settings)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return factor
