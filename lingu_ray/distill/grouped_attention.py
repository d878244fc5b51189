"""The teacher's attention: few queries over many shared keys.

Where several query heads share a key head (grouped-query attention), Transformers repeats keys and values for each of
them. Here the heads of a group are concatenated as queries of their key head: nothing is repeated, and the matrix
products are larger. The results are SDPA's.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from lingu_ray.distill.decoder import key_heads

GROUPED = "grouped_sdpa"


def use_grouped_attention(model: PreTrainedModel) -> None:
    """Switch a model from SDPA to this; others stay as they are."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(GROUPED)


def copies_of_mask(config: PreTrainedConfig) -> int:
    """How often the attention holds the elements of a mask `[S, 1, Q, K]`: for each head of a group.

    Any other attention is taken for eager, which holds the scores of each head.
    """
    heads = config.num_attention_heads
    return heads // key_heads(config) if config._attn_implementation == GROUPED else heads


def for_all_heads(config: PreTrainedConfig, index_SQ: Tensor) -> Tensor:
    """The queries of a mask as this attention takes it, made once for all layers: repeated for each head of a group."""
    return index_SQ.repeat(1, copies_of_mask(config)) if config._attn_implementation == GROUPED else index_SQ


def _attention(
    module: nn.Module,
    query_SNQE: Tensor,
    key_SHKE: Tensor,
    value_SHKE: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention with a mask that all heads share, `[S, 1, Q, K]` or repeated already; any other is left to SDPA."""
    if attention_mask is None or attention_mask.shape[1] != 1:
        return sdpa_attention_forward(
            module, query_SNQE, key_SHKE, value_SHKE, attention_mask, scaling=scaling, **kwargs
        )
    rows, heads, queries, width = query_SNQE.shape
    grouped = query_SNQE.reshape(rows, key_SHKE.shape[1], -1, width)
    if attention_mask.shape[2] != grouped.shape[2]:
        attention_mask = attention_mask.repeat(1, 1, heads // key_SHKE.shape[1], 1)
    output = F.scaled_dot_product_attention(grouped, key_SHKE, value_SHKE, attn_mask=attention_mask, scale=scaling)
    # one copy, wherever the kernel has its heads in memory
    return output.unflatten(2, (-1, queries)).permute(0, 3, 1, 2, 4).flatten(2, 3).contiguous(), None


AttentionInterface.register(GROUPED, _attention)
AttentionMaskInterface.register(GROUPED, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
