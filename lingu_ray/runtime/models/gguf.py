"""What a GGUF file says of a model, and Transformers does not read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from transformers import PreTrainedModel
from transformers.integrations.gguf import read_gguf_metadata

from lingu_ray.distill.decoder import rope_parameters

_NOT_SCALED = (0.0, 1.0)
"""Factors of RoPE that llama.cpp takes for none."""


def unread(model: PreTrainedModel, file: str) -> list[str]:
    """Tensors of the file that the model has no place for, and keys that scale RoPE where the model does not.

    Transformers skips both without a word. Some models scale RoPE by their class, whatever the file says (Gemma 4).
    """
    metadata, tensors = read_gguf_metadata(file)
    architecture = metadata["general.architecture"]
    skipped = _without_place(model, architecture, tensors)
    if any(rope.get("rope_type", "default") != "default" for rope in rope_parameters(model.config).values()):
        return [name for name in skipped if not name.startswith("rope_")]
    return [*skipped, *_scaling(metadata, f"{architecture}.rope.scaling.")]


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
