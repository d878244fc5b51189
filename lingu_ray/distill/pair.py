"""Checks that a student VLM and a text-only LM are a pair: the LM that the student's decoder came from.

The teacher continues from the student's KV without any projection. That is only right when both decoders have the same
layers, key/value heads, head dimension, RoPE and attention kind, so all of it is compared, on the configurations alone,
before anything is loaded.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lingu_ray.distill.decoder import (
    ATTENTION_KINDS,
    head_dim,
    layer_types,
    rope_parameters,
    sliding_window,
)
from lingu_ray.errors import UserError

_COMPARED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")


def check_models(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Raise UserError when two loaded models are no pair: wrong kinds of model, or decoders that differ."""
    for name, model in (("student", student), ("teacher", teacher)):
        if not isinstance(model, PreTrainedModel):
            raise UserError(
                f"{name}: must be the Transformers model itself, without wrappers; it is a {type(model).__name__}"
            )
    if any(hasattr(teacher.config, f"{kind}_config") for kind in ("vision", "audio")):
        raise UserError(f"teacher: {type(teacher).__name__} is not a text-only causal LM")
    if not any(hasattr(student.config, f"{kind}_config") for kind in ("vision", "audio")):
        raise UserError(f"student: {type(student).__name__} is no vision-language model")
    text = student.config.get_text_config(decoder=True)
    check_kind(teacher.config, "teacher")
    check_kind(text, "student")
    compare_decoders(text, teacher.config)


def compare_decoders(student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
    """Raise UserError naming every architecture field in which the two decoders' configurations differ."""
    pairs = {name: (getattr(student, name, None), getattr(teacher, name, None)) for name in _COMPARED}
    pairs["head_dim"] = (head_dim(student), head_dim(teacher))
    pairs["rope_parameters"] = (_text_rope(student), _text_rope(teacher))
    pairs["sliding_window"] = (sliding_window(student), sliding_window(teacher))
    pairs["layer_types"] = (layer_types(student), layer_types(teacher))
    different = [f"  {name}: student {a}, teacher {b}" for name, (a, b) in pairs.items() if a != b]
    if different:
        raise UserError(
            "student and teacher do not fit: the teacher continues from the student's keys and values, so both "
            "decoders must have the same architecture.\n" + "\n".join(different) + "\n"
            "Take the LM that the student's decoder was initialized from as teacher."
        )


def check_tokenizers(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Raise UserError when an id that both vocabularies have means different tokens."""
    student_tokens = {i: token for token, i in student.get_vocab().items()}
    teacher_tokens = {i: token for token, i in teacher.get_vocab().items()}
    shared = student_tokens.keys() & teacher_tokens.keys()
    different = sorted(i for i in shared if student_tokens[i] != teacher_tokens[i])
    # reserved tokens are renamed when a VLM is made; a different tokenizer differs in most ids
    if len(different) > 0.01 * len(shared):
        i = different[0]
        raise UserError(
            f"student and teacher tokenize differently: {len(different)} of {len(shared)} shared ids, first {i}: "
            f"student {student_tokens[i]!r}, teacher {teacher_tokens[i]!r}. KD compares distributions id by id."
        )


def check_kind(config: PreTrainedConfig, setting: str) -> None:
    """Raise UserError for an architecture that does not keep one key and value for each position and layer."""
    reasons = {
        "is an encoder-decoder": config.is_encoder_decoder,
        "reads images by cross-attention, so they are not in its prompt's KV": _has(config, "cross_attention_layers")
        or _has(config, "cross_layer_interval"),
        "keeps compressed keys and values (MLA)": _has(config, "kv_lora_rank"),
        "has no attention heads": not _has(config, "num_attention_heads"),
        "has layers without plain attention": not set(layer_types(config)) <= ATTENTION_KINDS,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UserError(
                f"{setting}: a {config.model_type} {reason}. The teacher continues from the student's keys and values, "
                "so both must be plain decoders with self-attention in every layer"
            )


def _has(config: PreTrainedConfig, name: str) -> bool:
    return bool(getattr(config, name, None))


def _text_rope(config: PreTrainedConfig) -> dict[str, Any]:
    """RoPE as text sees it: with one position on all axes, how M-RoPE splits them makes no difference."""
    rope = rope_parameters(config)
    plain = {name: value for name, value in rope.items() if not name.startswith("mrope_")}
    return plain | {"rope_type": "default"} if plain.get("rope_type") == "mrope" else plain
