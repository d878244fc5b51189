"""Where the samples of a micro-batch begin and end, for flash attention, which else reads it back in every layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from lingu_ray.distill.donation import sample_starts

_active: ContextVar[Mapping[str, Any]] = ContextVar("active_sequences", default=MappingProxyType({}))


def sequence_arguments(sample_BT: Tensor) -> dict[str, Any]:
    """Keyword arguments by which Transformers' flash attention knows the sequences of flattened rows.

    A sample is a sequence, and so is the padding of a row. `sample_BT`: see `plan_donation`; on the CPU, so that the
    greatest length is known there.
    """
    begin_N = sample_starts(sample_BT).flatten().nonzero().flatten()
    bounds = torch.cat([begin_N, begin_N.new_tensor([sample_BT.numel()])]).int()
    longest = int(bounds.diff().max())
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


@contextmanager
def of_sequences(arguments: Mapping[str, Any]) -> Iterator[None]:
    """Context in which decoders that `take_sequences` was called on get these arguments."""
    token = _active.set(arguments)
    try:
        yield
    finally:
        _active.reset(token)


def take_sequences(decoder: nn.Module) -> None:
    """Let a decoder have the arguments of the context; the vision tower, whose sequences are others, does not."""
    if _add not in decoder._forward_pre_hooks.values():
        decoder.register_forward_pre_hook(_add, with_kwargs=True)


def _add(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, **_active.get()}
