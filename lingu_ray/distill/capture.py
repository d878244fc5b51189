"""Capture of what the student donates: keys and values of every layer on the donated positions, and RoPE positions.

The decoder's attention function is wrapped where Transformers dispatches it: after RoPE and before the key/value heads
are repeated. So capture needs no KV cache (which gradient checkpointing would switch off), works for every decoder that
goes through the attention interface, and runs once per forward: what a checkpoint recomputes is not captured again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lingu_ray.distill import short_rows
from lingu_ray.distill.autocast import compute_dtype
from lingu_ray.errors import UserError

_PREFIX = "donating_"


class KVCapture:
    """Collects `kv_L2CHE` (keys `[:, 0]`, values `[:, 1]` of the donated positions, detached) and `position_ids`.

    `position_ids` are the RoPE positions that the decoder was given; None where it counts from 0 itself. Models with
    several RoPE axes (M-RoPE) give text tokens the same position on all of them, so the last axis is enough.
    """

    def __init__(self, layers: int, flat_C: Tensor, position_ids: Tensor | None = None):
        """`flat_C`: the donated ones of the B · T positions, on the device. `position_ids`: given to the model."""
        self.layers, self.flat_C = layers, flat_C
        self.kv_L2CHE: Tensor | None = None
        self.position_ids = position_ids
        self._stored: set[int] = set()

    def store(self, layer: int, key_BHTE: Tensor, value_BHTE: Tensor) -> None:
        """Take one layer's keys and values.

        Raises UserError for a layer that attends several times in a pass, or whose keys or values have another size.
        """
        if layer in self._stored:
            raise UserError(
                f"student: layer {layer} of the decoder attends more than once in a pass, so that its keys and values "
                "are not one for each position: its architecture cannot be distilled"
            )
        self._stored.add(layer)
        if self.kv_L2CHE is None:
            _, heads, _, dimension = key_BHTE.shape
            shape = (self.layers, 2, len(self.flat_C), heads, dimension)
            self.kv_L2CHE = torch.empty(shape, dtype=compute_dtype(key_BHTE), device=key_BHTE.device)
        for part, tensor_BHTE in enumerate((key_BHTE, value_BHTE)):
            if tensor_BHTE.shape[1::2] != self.kv_L2CHE.shape[-2:]:
                raise UserError(
                    f"student: layer {layer} of the decoder has keys or values of another size than the first layer's "
                    "keys: its architecture cannot be distilled"
                )
            # a position's heads are adjacent in memory, so flattening copies nothing
            positions = tensor_BHTE.detach().transpose(1, 2).flatten(0, 1).to(self.kv_L2CHE.dtype)
            torch.index_select(positions, 0, self.flat_C, out=self.kv_L2CHE[layer, part])

    @property
    def first_missing(self) -> int | None:
        """The first layer that did not donate in the forward pass; None where all did."""
        return min(set(range(self.layers)) - self._stored, default=None)

    def check_complete(self) -> None:
        """Raise UserError after a forward pass in which a layer did not donate: the teacher would read anything."""
        if (layer := self.first_missing) is not None:
            raise UserError(
                f"student: layer {layer} of the decoder did not donate its keys and values. Its attention was "
                "changed after the student was made to donate: do so before (set_attn_implementation); or the layer is "
                "that of another model: copy the weights alone (load_state_dict)"
            )

    def positions_at(self, row_Q: Tensor, column_Q: Tensor) -> Tensor:
        """RoPE positions `[Q]` at these rows and columns, on the CPU."""
        if self.position_ids is None:
            return column_Q
        position_BT = self.position_ids if self.position_ids.ndim == 2 else self.position_ids[-1]
        position_BT = position_BT.cpu()  # waits where the model counts them itself
        return position_BT[row_Q if len(position_BT) > 1 else 0, column_Q]  # one row may hold for all


_active: ContextVar[KVCapture | None] = ContextVar("active_kv_capture", default=None)


@contextmanager
def capturing(capture: KVCapture | None) -> Iterator[None]:
    """Context in which decoders that `donate` was called on fill `capture` (None: nothing is captured)."""
    token = _active.set(capture)
    try:
        yield
    finally:
        _active.reset(token)


def donate(decoder: PreTrainedModel) -> None:
    """Make a decoder donate to the active capture. Its numbers change by rounding alone, on short rows (`short_rows`).

    Raises UserError for a decoder whose attention is not dispatched by name.
    """
    base = str(decoder.config._attn_implementation)
    if _store_positions not in decoder._forward_pre_hooks.values():
        decoder.register_forward_pre_hook(_store_positions, with_kwargs=True)
    for layer in getattr(decoder, "layers", ()):
        if _hand_over not in layer._forward_hooks.values():
            layer.register_forward_hook(_hand_over, always_call=True)
    if base.startswith(_PREFIX):  # perhaps for another model of the same configuration object
        return
    if base not in ALL_MASK_ATTENTION_FUNCTIONS:
        raise UserError(
            f"attention implementation {base!r} of {type(decoder).__name__} cannot donate its KV: "
            "load the model with attn_implementation='sdpa' or a flash attention"
        )
    decoder.set_attn_implementation(_register_donating(base))


def _register_donating(base: str) -> str:
    """Register the attention that donates and then computes as `base`; returns its name."""

    def donating_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args, **kwargs):
        if torch.compiler.is_compiling():  # a capture would be a constant of the graph: the layer hands over later
            module.__dict__["donated"] = (*getattr(module, "donated", ()), (key.detach(), value.detach()))
        else:
            _store(module, key, value)
        attention = _attention(base, module)
        if base == "sdpa" and short_rows.is_short(query, key):
            return short_rows.in_float32(attention, module, query, key, value, *args, **kwargs)
        named = _Named(module, base) if "flash" in base else module
        return attention(named, query, key, value, *args, **kwargs)

    # Transformers would load a package, or a kernel of the hub, by a name that has "flash" in it
    name = _PREFIX + base.replace("flash_attention_", "fa")
    AttentionInterface.register(name, donating_attention)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    return name


def uses_flash(decoder: PreTrainedModel) -> bool:
    """Whether a decoder that donates computes its attention by flash-attn."""
    return str(decoder.config._attn_implementation).startswith(f"{_PREFIX}fa")


class _Named:
    """A module whose configuration has another name of its attention, by which flash attention finds its package."""

    def __init__(self, module: nn.Module, name: str):
        self._module, self.config = module, SimpleNamespace(_attn_implementation=name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@torch.compiler.disable
def _store(module: nn.Module, key_BHTE: Tensor, value_BHTE: Tensor) -> None:
    """Pass keys and values to the active capture."""
    capture = _active.get()
    if capture is not None:
        capture.store(cast(int, module.layer_idx), key_BHTE, value_BHTE)


@torch.compiler.disable
def _hand_over(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Store what the attention of a compiled layer left on its module. After errors, too: nothing of them stays."""
    for module in layer.modules():
        for key_BHTE, value_BHTE in module.__dict__.pop("donated", ()):
            _store(module, key_BHTE, value_BHTE)


def _store_positions(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    capture, position = _active.get(), kwargs.get("position_ids")
    if capture is not None and capture.position_ids is None:
        capture.position_ids = position


def _attention(name: str, module: nn.Module) -> Callable:
    """The attention function of this name; each model's file has its own `eager`."""
    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[name]


for _base in tuple(ALL_MASK_ATTENTION_FUNCTIONS):  # a student that is sent to another process donates there, too
    _register_donating(_base)
