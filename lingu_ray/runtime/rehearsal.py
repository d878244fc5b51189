"""What could fail after the corpus was built, tried before: the teacher's continuation, and the export at the end.

No weight is needed for it: the teacher is a small random LM of its configuration, the student is on the meta device,
and what an export writes beside the weights is small.
"""

from __future__ import annotations

import copy
import inspect
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.core_model_loading import revert_weight_conversion

from lingu_ray.config import StudentConfig, TeacherConfig
from lingu_ray.corpus.encode import Encoder
from lingu_ray.distill.teacher import Teacher
from lingu_ray.errors import UserError
from lingu_ray.runtime.models.export import as_published, complete_settings
from lingu_ray.runtime.models.load import empty_student, export_dtype, load_teacher_config
from lingu_ray.runtime.models.verify import question
from lingu_ray.runtime.models.weights import NOT_LOADABLE, check_tensors, empty_model
from lingu_ray.storage import local_copy

_INNER = ("intermediate_size", "moe_intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
_SMALL = dict.fromkeys((*_INNER, "vocab_size"), 64)
_LAYERS = 2
_LARGEST = 2**28  # parameters: a gigabyte


def rehearse_teacher(settings: TeacherConfig) -> None:
    """Ask a small random LM of the teacher's kind what the teacher is asked when it is loaded: can it be continued?

    Raises:
        UserError: it cannot be continued from its own keys and values; the message names the setting.
    """
    try:
        rehearse_continuation(load_teacher_config(settings))
    except UserError as error:
        raise UserError(f"teacher.path={settings.path}: {str(error).removeprefix('teacher: ')}") from error


def rehearse_continuation(config: PreTrainedConfig) -> None:
    """Raise UserError where a small random LM of the configuration cannot be continued from its own keys and values.

    Nothing is said of one that cannot be made so small, or does not run so: the teacher is asked when it is loaded.
    """
    if (model := _small_lm(config)) is not None:
        Teacher(model)


def rehearse_packing(config: PreTrainedConfig) -> None:
    """Raise UserError where packed samples see each other: in a small random LM of a decoder's configuration.

    Some classes (OPT's) do not tell their masks the positions, which alone separate the samples. Nothing is said of
    one that cannot be made so small.
    """
    if (model := _small_lm(config)) is None:
        return
    decoder = model.get_decoder()
    position_1T = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    ids_1T = torch.arange(position_1T.shape[1])[None]
    with torch.no_grad():
        packed, alone = (
            decoder(input_ids=ids_1T[:, at], position_ids=position_1T[:, at], use_cache=False).last_hidden_state[:, -4:]
            for at in (slice(None), slice(4, None))
        )
    if not torch.allclose(packed, alone, rtol=1e-3, atol=1e-3):
        raise UserError(
            f"train.packing: in Transformers' {type(decoder).__name__} packed samples see each other: leave "
            "train.packing out"
        )


def _small_lm(config: PreTrainedConfig) -> PreTrainedModel | None:
    """An LM with the attention of this configuration, but two layers, the first ones of each kind, and few ids."""
    small = copy.deepcopy(config)
    _shrink(small)
    try:
        model = _random_model(AutoModelForCausalLM, small)
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 1, dtype=torch.long))
    except Exception:  # each kind has conditions of its own on its sizes; nothing is refused for them
        return None
    return model


def _random_model(loader: Any, config: PreTrainedConfig) -> Any:
    """A random model in float32, of an auto class. Raises ValueError where it would still be large."""
    with torch.random.fork_rng(devices=[]):
        if empty_model(loader, config).num_parameters() > _LARGEST:
            raise ValueError("too large for a rehearsal")
        return loader.from_config(config, dtype=torch.float32).eval()


def _shrink(config: PreTrainedConfig) -> None:
    kinds = getattr(config, "layer_types", None)
    if kinds:
        config.layer_types = [*dict.fromkeys(kinds), *kinds][:_LAYERS]
    for name, size in (dict.fromkeys(("num_hidden_layers", "depth"), _LAYERS) | _SMALL).items():
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, min(size, getattr(config, name)))
    config.pad_token_id = None  # it may be an id that is none now


def rehearse_export(settings: StudentConfig, processor: Any) -> int:
    """Try the export of the student of `student.path`, without its weights.

    Generation settings, configuration and processor are saved and read again; the processor's prompt is compared with
    that of training; the names of all tensors go through saving and loading.

    Raises:
        UserError: something of it fails, the tokenizer has ids that the model has no embedding for, or processor and
            model have different tokens for an image.
    """
    path = cast(str, settings.path)
    origin, trusted = f"student.path={path}", settings.trust_remote_code
    model = empty_student(settings)
    _check_vocabulary(model, processor.tokenizer, origin)
    check_image_token(model, processor, origin)
    model.generation_config = _generation_settings(model, settings)
    encoder = Encoder(processor, 1)
    with TemporaryDirectory() as folder:
        try:
            complete_settings(model, processor)
            model.config.save_pretrained(folder)
            model.generation_config.save_pretrained(folder)
            processor.save_pretrained(folder)
            inputs = question(AutoProcessor.from_pretrained(folder, trust_remote_code=trusted), encoder)
        except UserError as error:
            raise UserError(f"{origin}: {error}") from error
        except NOT_LOADABLE as error:
            raise UserError(f"{origin}: what it would export cannot be saved and read again: {error}") from error
    check_image_features(model.config, inputs, encoder.image_token_id, origin)
    names = revert_weight_conversion(model, as_published(model, model.state_dict()))
    check_tensors(model, names, f"the export of {origin}")
    size = export_dtype(settings).itemsize + torch.float32.itemsize
    return sum(parameter.numel() for parameter in model.parameters()) * size


def _generation_settings(model: PreTrainedModel, settings: StudentConfig) -> GenerationConfig:
    """What is in generation_config.json; without the file, what the configuration says."""
    path = cast(str, settings.path)
    try:
        return GenerationConfig.from_pretrained(local_copy(path), revision=settings.revision or "main")
    except ValueError as error:
        raise UserError(f"student.path={path}: its generation_config.json cannot be used: {error}") from error
    except OSError:
        return model.generation_config


def check_image_token(model: PreTrainedModel, processor: Any, origin: str) -> None:
    """Raise UserError where the token that the processor writes for an image is not the one that the model replaces.

    Idefics3 and SmolVLM would then see no image, and not say so.
    """
    written, replaced = Encoder(processor, 1).image_token_id, getattr(model.config, "image_token_id", None)
    if replaced not in (None, written):
        token = processor.tokenizer.convert_ids_to_tokens(written)
        raise UserError(
            f"{origin}: its processor writes token {written} ({token}) for an image, and its model puts images in "
            f"place of {replaced}: correct image_token_id in its config.json, or take the processor of this model"
        )


def check_image_features(config: PreTrainedConfig, inputs: dict[str, Tensor], image_token: int, origin: str) -> None:
    """Raise UserError where the processor writes more or fewer tokens for an image than the model has features of it.

    Training says so too, in its first step. A small random VLM of the configuration is asked; nothing is said of one
    that cannot be made so small, or is asked in another way.
    """
    if (asked := _small_vlm(config, inputs)) is None:
        return
    model, features_FD = asked
    written = int((inputs["input_ids"] == image_token).sum())
    if not _are_placed(model, inputs["input_ids"], written, features_FD):
        raise UserError(
            f"{origin}: for one picture its processor writes {written} image tokens, and its model has "
            f"{len(features_FD)} features: correct image_seq_len, patch_size or the image sizes in its "
            "processor_config.json or preprocessor_config.json, or take the processor of this model"
        )


def _small_vlm(config: PreTrainedConfig, inputs: dict[str, Tensor]) -> tuple[PreTrainedModel, Tensor] | None:
    """A VLM with few layers of this configuration, and its features of the pictures in the inputs, `features_FD`."""
    small = copy.deepcopy(config)
    for part in (small, *(getattr(small, name, None) for name in small.sub_configs)):
        if part is not None:
            _shrink(part)
    try:
        model = _random_model(AutoModelForImageTextToText, small)
        taken = inspect.signature(model.get_image_features).parameters
        with torch.no_grad():
            found = model.get_image_features(**{name: tensor for name, tensor in inputs.items() if name in taken})
        found = found.pooler_output
        return model, torch.cat([one.flatten(0, -2) for one in ([found] if isinstance(found, Tensor) else found)])
    except Exception:  # as for the teacher
        return None


def _are_placed(model: PreTrainedModel, ids_BT: Tensor, written: int, features_FD: Tensor) -> bool:
    """Whether the model puts these features in place of that many tokens, by its own check where it has one."""
    place = getattr(model.base_model, "get_placeholder_mask", None)
    if place is None:
        return written == len(features_FD)
    try:
        place(
            ids_BT,
            inputs_embeds=features_FD.new_zeros(*ids_BT.shape, features_FD.shape[-1]),
            image_features=features_FD,
        )
    except (ValueError, RuntimeError):
        return False
    return True


def _check_vocabulary(model: PreTrainedModel, tokenizer: Any, origin: str) -> None:
    """Raise UserError where the tokenizer has an id for which the model has no embedding."""
    rows = cast(nn.Embedding, model.get_input_embeddings()).weight.shape[0]
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= rows}
    if beyond:
        shown = ", ".join(f"{token} ({i})" for token, i in list(beyond.items())[:3])
        raise UserError(
            f"{origin}: its tokenizer has {len(beyond)} tokens beyond the {rows} rows of its embeddings: {shown}. "
            "Enlarge them by model.resize_token_embeddings(len(tokenizer)), or take the tokenizer of this model"
        )
