"""What a GGUF file says of a model, and Transformers does not read; of its tokenizer: `gguf_tokenizer`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from transformers import PreTrainedModel
from transformers.integrations.gguf import read_gguf_metadata

from lingu_ray.distill.decoder import field, rope_parameters, sliding_window

_NOT_SCALED = (0.0, 1.0)
"""Factors of RoPE that llama.cpp takes for none."""

_EPSILONS = ("eps", "variance_epsilon")
"""What norms call what they add to a variance."""


def parts(file: str) -> int:
    """How many files the model is split into, of which this is one."""
    return read_gguf_metadata(file)[0].get("split.count") or 1


def unread(model: PreTrainedModel, file: str) -> list[str]:
    """Tensors of the file that the model has no place for, and keys that the model computes otherwise.

    Transformers skips both without a word. Some models scale RoPE by their class, whatever the file says (Gemma 4).
    """
    metadata, tensors = read_gguf_metadata(file)
    architecture = metadata["general.architecture"]
    skipped = _without_place(model, architecture, tensors)
    keys = [*_scaling(metadata, f"{architecture}.rope.scaling."), *_otherwise(model, metadata, f"{architecture}.")]
    if any(rope.get("rope_type", "default") != "default" for rope in rope_parameters(model.config).values()):
        skipped = [name for name in skipped if not name.startswith("rope_")]
        keys = [key for key in keys if not key.startswith(f"{architecture}.rope.")]
    return [*skipped, *keys]


def _without_place(model: PreTrainedModel, architecture: str, tensors: Iterable[str]) -> list[str]:
    # here, since Transformers means to give this reader up, and models in other files are loaded without it
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)()
    try:
        places = get_gguf_hf_weights_map(model, processor)
    except NotImplementedError:  # of the reader that takes its place, where Transformers' report has what is left over
        return []
    # stacked experts have places without the suffix
    known = {name.removesuffix(".weight") for name in places}
    return [name for name in tensors if name.removesuffix(".weight") not in known]


def _scaling(metadata: dict[str, Any], begin: str) -> Iterator[str]:
    """The keys that scale RoPE by a factor, with their values; none where there is none (longrope's are tensors)."""
    if metadata.get(f"{begin}type") != "none" and metadata.get(f"{begin}factor", 1.0) not in _NOT_SCALED:
        yield from (f"{key}={value}" for key, value in metadata.items() if key.startswith(begin))


def _otherwise(model: PreTrainedModel, metadata: dict[str, Any], begin: str) -> Iterator[str]:
    """The keys of which the model has another value, by its class's default, with what the file says."""
    for key, values in _computed(model).items():
        stated = metadata.get(f"{begin}{key}")
        if stated is not None and not any(math.isclose(stated, value, rel_tol=1e-6) for value in values):
            yield f"{begin}{key}={stated:g}"


def _computed(model: PreTrainedModel) -> dict[str, set[float]]:
    """What the model computes with, by the key that llama.cpp reads it from; several where layers differ.

    A class without RoPE, or heads of its own, has nothing to say of them.
    """
    config = model.config
    heads = (getattr(module, "head_dim", None) for module in model.modules())
    widths = {float(width) for width in heads if isinstance(width, int)}
    added = (getattr(module, name, None) for module in model.modules() for name in _EPSILONS)
    norms = {epsilon for epsilon in added if isinstance(epsilon, float)}
    scale = field(config, "query_pre_attn_scalar")
    found: dict[str, set[float]] = {
        "rope.freq_base": {rope["rope_theta"] for rope in rope_parameters(config).values() if "rope_theta" in rope},
        "rope.dimension_count": {2 * len(one) for name, one in model.named_buffers() if name.endswith("inv_freq")},
        "attention.key_length": widths,
        "attention.layer_norm_epsilon": norms,
        "attention.layer_norm_rms_epsilon": norms,
        "attention.sliding_window": {sliding_window(config) or 0.0},
        "attn_logit_softcapping": {field(config, "attn_logit_softcapping") or 0.0},
        "final_logit_softcapping": {field(config, "final_logit_softcapping") or 0.0},
    }
    computed = {key: values for key, values in found.items() if values}
    if scale is not None and scale not in widths:  # as of no GGUF: llama.cpp knows that of Gemma 2 27B by its layers
        computed["attention.key_length"] = set()
    return computed
