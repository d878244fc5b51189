"""The device of a command that computes in its own process."""

from __future__ import annotations

import torch

from lingu_ray.errors import UserError, first_line


def torch_device(name: str | None) -> torch.device:
    """The device of that name; None: a GPU where there is one. Raises UserError where torch cannot use it."""
    wanted = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=wanted).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        raise UserError(f"device={wanted}: torch cannot use it: {first_line(error)}") from error
