"""The output head: how final hidden states become logits, for the loss and for scoring, of students and teachers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig, PreTrainedModel

from lingu_ray.distill.decoder import field
from lingu_ray.errors import UserError

_MULTIPLIERS = ("logit_scale", "lm_head_multiplier", "output_multiplier")  # Cohere, Falcon-H1, Muse
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap")  # Gemma 2 and later, RecurrentGemma
_RELATIVE = 0.05  # what logits may be off by, for rounding


@dataclass(frozen=True)
class OutputHead:
    """logits = softcap · tanh(scale · hidden Wᵀ / softcap); without a soft cap scale · hidden Wᵀ.

    `weight_VD`: one row for each vocabulary id.
    """

    weight_VD: Tensor
    scale: float = 1.0
    softcap: float | None = None

    @property
    def vocabulary(self) -> int:
        """V, the number of ids."""
        return self.weight_VD.shape[0]

    def cast(self, dtype: torch.dtype) -> OutputHead:
        """The same head with its weight in `dtype`."""
        return replace(self, weight_VD=self.weight_VD.to(dtype))

    def first(self, ids: int) -> OutputHead:
        """The head of the first ids alone."""
        return replace(self, weight_VD=self.weight_VD[:ids])

    @torch.no_grad()
    def logits(self, hidden_ND: Tensor, out: Tensor | None = None) -> Tensor:
        """`[N, V]` in float32, in `out` where it is given. Hidden states and weight have the same dtype."""
        if out is None:
            out = hidden_ND.new_empty(len(hidden_ND), self.vocabulary, dtype=torch.float32)
        add_product_(out, hidden_ND, self.weight_VD.T, beta=0)
        return scale_(out, self.scale, self.softcap)

    def pull_back_(self, grad_NV: Tensor, logits_NV: Tensor) -> Tensor:
        """dL/d(hidden Wᵀ) from dL/dlogits, in place; `logits_NV`, as returned by `logits`, are overwritten too."""
        if self.softcap is not None:
            # d tanh(x)/dx = 1 − tanh²(x)
            grad_NV.addcmul_(grad_NV, logits_NV.square_(), value=-1 / self.softcap**2)
        return grad_NV if self.scale == 1 else grad_NV.mul_(self.scale)


def scale_(logits: Tensor, scale: float, softcap: float | None) -> Tensor:
    """The head's products with scale and soft cap, in place."""
    if softcap is not None:
        return logits.mul_(scale / softcap).tanh_().mul_(softcap)
    return logits if scale == 1 else logits.mul_(scale)


def add_product_(sum_: Tensor, a: Tensor, b: Tensor, beta: float) -> None:
    """sum = beta · sum + a b for a float32 `sum_`, whose content `beta=0` ignores; `a` and `b` have the same dtype."""
    if a.dtype == sum_.dtype:
        sum_.addmm_(a, b, beta=beta)
    elif sum_.is_cuda and a.itemsize == 2:  # the product's own float32, never rounded to the factors' dtype
        torch.addmm(sum_, a, b, beta=beta, out_dtype=sum_.dtype, out=sum_)
    elif a.dtype == torch.float16:  # where a sum may be beyond what it has
        sum_.addmm_(a.float(), b.float(), beta=beta)
    elif beta == 0:
        sum_.copy_(a @ b)
    else:
        sum_.mul_(beta).add_(a @ b)


def output_head(model: PreTrainedModel) -> OutputHead:
    """The model's head, with the scale and soft cap of the decoder's configuration.

    The classes of PaliGemma 2 and Aya Vision leave out the soft cap or scale that their LM was trained with; here it
    is applied.

    Raises:
        UserError: no output head, or one with a bias or an adapter, quantized or without its weight.
    """
    head = model.get_output_embeddings()
    if head is not None and any(hasattr(part, "base_layer") for part in cast(nn.Module, head).modules()):
        raise UserError(
            f"{type(model).__name__}: the output head has an adapter, which the loss, made of the head's weight, would "
            "leave out: take the head out of target_modules, or train it whole (modules_to_save). Where it is the "
            "embedding matrix, leave out trainable_token_indices and ensure_weight_tying, which adapt it too"
        )
    weight, bias = (getattr(head, name, None) for name in ("weight", "bias"))
    if head is not None and not _is_plain(weight):
        raise UserError(_quantized(model))
    if head is None or bias is not None:
        raise UserError(f"{type(model).__name__}: the method needs an output head without bias")
    weight = cast(Tensor, weight)
    if not weight.numel() or (weight.is_meta and model.device.type != "meta"):  # a whole model on `meta` is estimated
        raise UserError(
            f"{type(model).__name__}: the output head's weight is elsewhere until the head is called, which the loss "
            "does not do: offload other parts (device_map); of ZeRO take stage 2, or FSDP2 around the whole module"
        )
    scale, softcap = scaling(model.config.get_text_config(decoder=True))
    return OutputHead(weight, scale, softcap)


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Raise UserError unless the head multiplies hidden states by its weight, and does nothing else; as `output_head`.

    A hook, or a class of its own (one that normalizes its weight), may do more, which the loss would leave out. A
    weight that is not here (`meta`), or sharded, is left alone.
    """
    weight_VD, head = output_head(model).weight_VD, cast(nn.Module, model.get_output_embeddings())
    if weight_VD.is_meta or isinstance(weight_VD, DTensor):
        return
    generator = torch.Generator("cpu").manual_seed(0)
    size = (1, 2, weight_VD.shape[1])
    hidden_1ND = torch.randn(size, generator=generator, device="cpu", dtype=torch.float32)
    hidden_1ND = hidden_1ND.to(weight_VD.device, weight_VD.dtype)
    with torch.autocast(weight_VD.device.type, enabled=False):
        try:
            found_1NV = head(hidden_1ND).float()
        except (AssertionError, AttributeError) as error:  # bitsandbytes' layer around the embedding matrix
            raise UserError(_quantized(model)) from error
        expected_1NV = F.linear(hidden_1ND, weight_VD).float()
    if (found_1NV - expected_1NV).norm() > _RELATIVE * expected_1NV.norm():
        raise UserError(
            f"{type(model).__name__}: the output head, a {type(head).__name__}, computes something else than hidden "
            "states times its weight, of which the loss is made: remove its hooks, or take a model with a plain head"
        )


def _is_plain(weight: Any) -> bool:
    """Whether a head's weight is a tensor of numbers; a quantized one may hold several, as torchao's do."""
    if not isinstance(weight, Tensor) or (hasattr(weight, "__tensor_flatten__") and not isinstance(weight, DTensor)):
        return False
    return weight.is_floating_point() and weight.itemsize > 1


def _quantized(model: PreTrainedModel) -> str:
    return (
        f"{type(model).__name__}: the output head is quantized, and the loss is made of its weight: leave the head out "
        "of the quantization (llm_int8_skip_modules, modules_to_not_convert)"
    )


def scaling(text: PreTrainedConfig) -> tuple[float, float | None]:
    """Scale and soft cap that a decoder's configuration names; 1 and None for most."""
    scale = math.prod(field(text, name) or 1.0 for name in _MULTIPLIERS)
    # HyperCLOVA X multiplies by what divides the logits of Granite and MiniCPM3
    scale *= (field(text, "logits_scaling") or 1.0) ** (1 if text.model_type.startswith("hyperclovax") else -1)
    softcap = next((cap for name in _SOFTCAPS if (cap := field(text, name))), None)
    return float(scale), softcap
