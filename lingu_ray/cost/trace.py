"""Memory of a micro-batch in decoder and loss, found by running their own code on PyTorch's fake tensors.

Fake tensors have shapes, dtypes and storages of the right sizes, but no values and no memory. So what autograd keeps,
what a backward pass needs on top, and what gradient checkpointing saves follow from the code that trains, for every
family of decoders.
"""

from __future__ import annotations

import weakref
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from lingu_ray.distill.divergence import DivergenceFn
from lingu_ray.distill.head import OutputHead
from lingu_ray.distill.loss import LossScales, TeacherOutput, ce_kd_loss, logits_at_a_time
from lingu_ray.errors import UserError
from lingu_ray.runtime.training.frozen import frozen_in_linear

_CAUSAL = "causal_sdpa"
_GROUPED_MM = torch.ops.aten._grouped_mm.default


@dataclass(frozen=True)
class PassCost:
    """What a forward and backward pass costs. Bytes: `kept` for the backward pass, `peak` at any moment of both.

    `rounded`: bytes of rounded weights, beside these, that all passes of a step share.
    `forward`, `launches`: operations of the forward pass and of both; on a GPU each launches a kernel or more. `once`:
    how many of them round weights that the next pass of a step finds rounded.
    """

    kept: int
    peak: int
    rounded: int = 0
    forward: int = 0
    launches: int = 0
    once: int = 0


class LiveBytes(TorchDispatchMode):
    """Counts bytes of the tensors that are made inside the block, `now` and at `peak`, and operations (`launches`).

    Views do not count: they compute nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.launches = 0
        self._live: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        output = _grouped_mm(func, *args, **(kwargs or {})) if func is _GROUPED_MM else func(*args, **(kwargs or {}))
        if func.namespace == "aten" and not func.is_view:
            self.launches += 1
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in given:
                self._count(leaf.untyped_storage())
        return output

    def __len__(self) -> int:
        """How many tensors there are now."""
        return len(self._live)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._live:
            return

        def freed(_: weakref.ref) -> None:
            del self._live[key]
            self.now -= size

        self._live[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


def _grouped_mm(func: Any, left: Tensor, right: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The matrix product of experts: it computes in any dtype, but on fake tensors PyTorch takes bf16 only."""
    return func(left.bfloat16(), right.bfloat16(), *args, **kwargs).to(left.dtype)


@lru_cache(maxsize=64)
def decoder_pass(
    decoder: PreTrainedModel,
    rows: int,
    tokens: int,
    masked: bool,
    bf16: bool,
    checkpointing: bool,
    gathers: bool = False,
    holds: bool = False,
) -> PassCost:
    """Forward and backward pass of a decoder over embedded rows, where gradients exist already.

    Args:
        decoder: on the meta device; it stays as it is.
        rows: rows of the micro-batch.
        tokens: tokens of a row.
        masked: whether attention gets a mask, as it does where rows are padded.
        bf16: whether it runs under autocast.
        checkpointing: whether gradient checkpointing is on.
        gathers: whether the matrices of its layers come rounded already, as FSDP2 gathers them.
        holds: whether frozen weights of its linear layers are held in bf16.

    Raises:
        UserError: the decoder does not run on fake tensors, or does not support gradient checkpointing.
    """
    name = type(decoder).__name__
    if checkpointing and not decoder.supports_gradient_checkpointing:
        raise UserError(f"train.gradient_checkpointing=true: {name} does not support it: leave it out")
    fake: Any = deepcopy(decoder).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake.to_empty(device="cpu")
        rounded = [p for p in fake.layers.parameters() if p.ndim > 1] if gathers else []
        for parameter in rounded + (frozen_in_linear(fake) if holds else []):
            parameter.data = parameter.data.bfloat16()
        if checkpointing:
            fake.gradient_checkpointing_enable({"use_reentrant": False})
        mask, implementation = _mask(fake, rows, tokens), str(fake.config._attn_implementation)
        if not masked and not implementation.endswith("eager"):
            fake.set_attn_implementation(_CAUSAL)
        embedding_RTD = torch.empty(rows, tokens, fake.config.hidden_size, requires_grad=True)
        for tensor in (embedding_RTD, *(p for p in fake.parameters() if p.requires_grad)):
            tensor.grad = torch.empty_like(tensor)
        try:
            return _traced_pass(fake, embedding_RTD, mask, bf16, rounds_once=not checkpointing)
        except RuntimeError as error:
            raise UserError(f"the memory of a {name} cannot be estimated: {error}") from error


def _traced_pass(decoder: Any, embedding_RTD: Tensor, mask: Tensor, bf16: bool, rounds_once: bool) -> PassCost:
    """In an autocast that lasts longer than the pass, as `MicroBatches` has it."""
    with LiveBytes() as live, torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=rounds_once):
        hidden_RTD = decoder(
            inputs_embeds=embedding_RTD,
            attention_mask=mask,
            position_ids=torch.arange(embedding_RTD.shape[1])[None],
            use_cache=False,
        ).last_hidden_state
        kept, forward = live.now, live.launches
        with torch.autocast("cpu", enabled=False):
            hidden_RTD.backward(torch.empty_like(hidden_RTD))
        del hidden_RTD
        rounded, once = live.now, len(live)
    return PassCost(kept - rounded, live.peak - rounded, rounded, forward, live.launches, once)


def loss_pass(
    student: OutputHead,
    teacher: OutputHead | None,
    width: int,
    tokens: int,
    bf16: bool,
    trained: bool,
    temperature: float,
    divergence: DivergenceFn,
    on_gpu: bool,
) -> PassCost:
    """The fused loss on `tokens` supervised tokens, all with a KD term where there is a teacher.

    The heads may be on the meta device. `kept` are the gradients of hidden states and head, until the backward pass.
    """
    dtype = torch.bfloat16 if bf16 else torch.float32
    with FakeTensorMode(allow_non_fake_inputs=True):
        head = _fake_head(student, student.weight_VD.dtype, trained)
        hidden_ND = torch.empty(tokens, width, dtype=dtype, requires_grad=True)
        labels_N, scale_N = torch.empty(tokens, dtype=torch.long), torch.empty(tokens)
        output = None
        if teacher is not None:
            hidden_MD = torch.empty(tokens, width, dtype=dtype)
            output = TeacherOutput(hidden_MD, _fake_head(teacher, dtype, False), torch.empty(tokens, dtype=torch.bool))
        with LiveBytes() as live:
            scales = LossScales(scale_N, scale_N, temperature)
            terms = ce_kd_loss(hidden_ND, head, labels_N, scales, output, divergence, logits_at_a_time(on_gpu))
            kept = live.now
            del terms
    return PassCost(kept, live.peak, forward=live.launches, launches=live.launches)


def _fake_head(head: OutputHead, dtype: torch.dtype, trained: bool) -> OutputHead:
    weight_VD = torch.empty(head.weight_VD.shape, dtype=dtype, requires_grad=trained)
    return OutputHead(weight_VD, head.scale, head.softcap)


def _mask(decoder: PreTrainedModel, rows: int, tokens: int) -> Tensor:
    """A mask over all positions and keys, which Transformers uses unchanged for every kind of layer."""
    dtype = torch.float32 if str(decoder.config._attn_implementation).endswith("eager") else torch.bool
    return torch.empty(rows, 1, tokens, tokens, dtype=dtype)


def _causal_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """SDPA without a mask, as Transformers runs it where no row is padded."""
    return sdpa_attention_forward(module, query, key, value, None, **kwargs)


AttentionInterface.register(_CAUSAL, _causal_attention)
AttentionMaskInterface.register(_CAUSAL, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
