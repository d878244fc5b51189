"""What engines read of a model before its weights: configuration, tokenizer, processor, end tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from lingu_ray.content import model_identity
from lingu_ray.errors import UserError
from lingu_ray.paths import hub_model, model_origin, why_not_loaded
from lingu_ray.processors import read_processor
from lingu_ray.runtime.models.gguf_tokenizer import load_tokenizer
from lingu_ray.runtime.models.load import read_config
from lingu_ray.runtime.models.weights import NOT_LOADABLE, check_files, empty_model
from lingu_ray.storage import local_copy


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model without its weights; `processor` is None for a causal LM.

    `path`: a local folder, of a model in a bucket the node's copy, or a hub id.
    """

    path: str
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    processor: ProcessorMixin | None
    eos_ids: frozenset[int]
    """Tokens that end an answer according to the model's own settings."""

    @property
    def max_length(self) -> int:
        """The model's context in tokens."""
        return context_of(self.config)


def context_of(config: PreTrainedConfig) -> int:
    """How many tokens a model of this configuration takes.

    Raises:
        UserError: the configuration does not say.
    """
    context = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if context is None:  # as of ALiBi (BLOOM, MPT), which has no positions, and of models without attention
        raise UserError(
            f"model {config.name_or_path}: its configuration does not say how long a text it takes: write "
            "max_position_embeddings into its config.json"
        )
    return context


def supports_images(config: PreTrainedConfig) -> bool:
    """Whether the model of this configuration takes images."""
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def load_model_files(path: Path | str) -> ModelFiles:
    """Read everything but the weights.

    Raises:
        UserError: Transformers cannot load what is at `path`.
    """
    path = local_copy(path)
    place, origin = model_origin(path)
    config = _load_config(path)
    try:
        tokenizer = load_tokenizer(place, trust_remote_code=False, **origin)
        can_see = supports_images(config)
        processor = read_processor(place, trust_remote_code=False) if can_see else None
    except NOT_LOADABLE as error:
        raise cannot_load(path, error) from error
    return ModelFiles(path, config, tokenizer, processor, _eos_ids(place, config, tokenizer))


def takes_images(path: Path | str) -> bool:
    """Whether the model at `path` takes images, by its configuration alone (errors as `load_model_files`)."""
    return supports_images(_load_config(path))


def identity_of(path: Path | str) -> str:
    """Identity of the model at `path`, whose configuration was just read: of a hub model the commit that it was of.

    A branch moves on, and with it weights, chat template or end tokens.
    """
    local = local_copy(path)
    place, origin = model_origin(local)
    hub = hub_model(place)
    found = try_to_load_from_cache(hub[0], origin.get("gguf_file", "config.json")) if hub else None
    return model_identity(local, Path(found).parent.name if isinstance(found, str) else None)


def loader_of(images: bool) -> Any:
    """The auto class of models that take images, or of causal LMs."""
    return AutoModelForImageTextToText if images else AutoModelForCausalLM


def check_weights(path: Path | str) -> None:
    """Check that a local folder's weights are those of its model, by names and shapes; none is read.

    vLLM does not report weights that are missing. What a hub has is checked when Transformers loads it.

    Raises:
        UserError: weights are missing, left over, of another shape, or a file is cut off or absent.
    """
    path = local_copy(path)
    if not Path(path).is_dir() or hasattr(config := _load_config(path), "quantization_config"):
        return
    try:
        model = empty_model(loader_of(supports_images(config)), config)
    except NOT_LOADABLE:
        return  # no class in Transformers: vLLM may have one
    check_files(model, Path(path), f"model {path}")


def _load_config(path: Path | str) -> PreTrainedConfig:
    config = read_config(str(path), None, False, "model")
    context_of(config)
    return config


def cannot_load(path: Path | str, error: Exception) -> UserError:
    """The error to raise for a model that does not load."""
    if "trust_remote_code" in str(error):
        return UserError(f"cannot load the model: {path} comes with code of its own, which is not run here")
    return UserError(f"cannot load the model: {why_not_loaded(path, error)}")


def _eos_ids(place: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    try:
        eos = GenerationConfig.from_pretrained(place).eos_token_id
    except OSError:  # a folder without generation settings
        eos = GenerationConfig.from_model_config(config).eos_token_id
    ids = {*(eos if isinstance(eos, list) else [eos]), tokenizer.eos_token_id}
    return frozenset(token for token in ids if token is not None)
