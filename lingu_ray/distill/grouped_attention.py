"""The teacher's attention: few queries over many shared keys.

Where several query heads share a key head (grouped-query attention), Transformers repeats keys and values for each of
them. Here the heads of a group are concatenated as queries of their key head: nothing is repeated, and the matrix
products are larger. The results are SDPA's.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

GROUPED = "grouped_sdpa"


def use_grouped_attention(model: PreTrainedModel) -> None:
    """Switch a model from SDPA to this; others stay as they are."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(GROUPED)


def _attention(
    module: nn.Module,
    query_SNQE: Tensor,
    key_SHKE: Tensor,
    value_SHKE: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention with a mask `[S, 1, Q, K]` that all heads share; any other case is left to SDPA."""
    if attention_mask is None or attention_mask.shape[1] != 1:
        return sdpa_attention_forward(
            module, query_SNQE, key_SHKE, value_SHKE, attention_mask, scaling=scaling, **kwargs
        )
    rows, heads, queries, width = query_SNQE.shape
    grouped = query_SNQE.reshape(rows, key_SHKE.shape[1], -1, width)
    mask = attention_mask.repeat(1, 1, heads // key_SHKE.shape[1], 1)
    output = F.scaled_dot_product_attention(grouped, key_SHKE, value_SHKE, attn_mask=mask, scale=scaling)
    return output.reshape(rows, heads, queries, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, _attention)
AttentionMaskInterface.register(GROUPED, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
