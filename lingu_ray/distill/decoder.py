"""What the configuration of a text decoder says about its attention.

A file may hold fields that its model's class does not have, of the model that it was made of for instance (a Llama with
a `sliding_window`). They become attributes that no model reads, so they say nothing here: `field`.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

ATTENTION_KINDS = {"full_attention", "sliding_attention"}


def field(config: PreTrainedConfig, name: str) -> Any:
    """A field that the configuration's class has; None where it has none, or it is empty.

    Of a class that Transformers does not have, with code of its own, every attribute counts.
    """
    kind = type(config)
    known = hasattr(kind, name) or name in getattr(kind, "__dataclass_fields__", ()) or name in kind.attribute_map
    return getattr(config, name, None) if known or not kind.__module__.startswith("transformers.") else None


def head_dim(config: PreTrainedConfig) -> int:
    """Width of one attention head.

    Most models read it from the file, also where their configuration's class does not have it (Qwen2, Qwen3-MoE).
    """
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def key_heads(config: PreTrainedConfig) -> int:
    """Key/value heads of a layer."""
    return field(config, "num_key_value_heads") or config.num_attention_heads


def inner_width(config: PreTrainedConfig) -> int:
    """Inner width of a layer's MLP."""
    return getattr(config, "intermediate_size", None) or 4 * config.hidden_size


def rope_parameters(config: PreTrainedConfig) -> dict[str, dict[str, Any]]:
    """RoPE settings by kind of layer; where one is for all kinds, under an empty name."""
    parameters = field(config, "rope_parameters") or {}
    by_kind = {kind: settings for kind, settings in parameters.items() if isinstance(settings, dict)}
    return by_kind or {"": parameters}


def longest_row(config: PreTrainedConfig) -> int | None:
    """Tokens up to which RoPE has the same frequencies in rows of all lengths; None: in any row.

    Beyond it `dynamic` and `longrope` have others, by the longest row of a batch.
    """
    found = []
    for rope in rope_parameters(config).values():
        if rope.get("rope_type") == "dynamic":
            found.append(config.max_position_embeddings)
        elif rope.get("rope_type") == "longrope":
            found.append(rope["original_max_position_embeddings"])
    return min(found, default=None)


def sliding_window(config: PreTrainedConfig) -> int | None:
    """How many positions a position sees in sliding layers, itself included; None: all before it."""
    window = field(config, "sliding_window")
    return None if field(config, "use_sliding_window") is False else window


def prompt_window(config: PreTrainedConfig) -> int | None:
    """Tokens up to which a VLM's prompt sees no more than its LM does in sliding layers; None: in any row.

    PaliGemma's sees all of itself there.
    """
    return sliding_window(config.get_text_config(decoder=True)) if config.model_type == "paligemma" else None


def has_layer_types(config: PreTrainedConfig) -> bool:
    """Whether the decoder names a kind of attention for each layer, and takes a mask for each kind."""
    return field(config, "layer_types") is not None


def layer_types(config: PreTrainedConfig) -> list[str]:
    """The kind of every layer's attention."""
    if has_layer_types(config):
        return list(config.layer_types)
    kind = "full_attention" if sliding_window(config) is None else "sliding_attention"
    return [kind] * config.num_hidden_layers


def use_exact_attention(decoder: PreTrainedModel) -> None:
    """Switch to eager attention where scores are soft-capped (Gemma 2), which SDPA would leave out."""
    eager = str(decoder.config._attn_implementation).endswith("eager")  # also one that donates
    if field(decoder.config, "attn_logit_softcapping") and not eager:
        decoder.set_attn_implementation("eager")
