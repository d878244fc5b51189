"""A model is what its files say: no weight is missing, left over, of another shape, cut off, or not a number.

Transformers loads what it can. A weight that the files lack is made at random, and one that the class lacks is dropped,
with a warning at most; here both are errors. What Transformers itself declares to be no fault is none: tied heads,
buffers that are computed, weights that a class is known to ignore.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file, find_adapter_config_file
from transformers.utils import logging as transformers_logging

from lingu_ray.atomic import read_json
from lingu_ray.errors import UserError, some
from lingu_ray.hub import HUB_ERRORS
from lingu_ray.paths import why_not_loaded
from lingu_ray.runtime.models import gguf
from lingu_ray.runtime.models.tensor_headers import COPY_AGAIN, Stored, listed

NOT_LOADABLE = (
    *(*HUB_ERRORS, KeyError, ImportError, RuntimeError, SafetensorError, StrictDataclassError, struct.error),
    *(ArithmeticError, AssertionError),
)
"""What Transformers raises where there is no model, one that it does not know, a file that was cut off (GGUF), or a
field of a configuration that is of another type, or a number that no model has, as a patch of 0 pixels.
"""
MOST_LAYERS = 10_000  # Transformers makes whatever number a configuration names, until memory is full

_JSON_FILES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    "adapter_config.json",
)
_MERGE = (
    "load it with peft, PeftModel.from_pretrained(base model, adapter), and save what merge_and_unload() returns, with "
    "the tokenizer or processor"
)
_WRAPPERS = {
    "base_model.model.": f"These are names of a model that peft has wrapped: {_MERGE}.",
    "module.": "These are names of a model wrapped for data parallelism: save its `.module` by save_pretrained.",
    "_orig_mod.": "These are names of a compiled model: save its `._orig_mod` by save_pretrained.",
}
_CURE = "Save the model again by save_pretrained of the class that it was trained as, or put its own config.json back."
_NOT_QUANTIZED = "Take the model that was not quantized; a teacher may also be a .gguf file"
_OF_QUANTIZED = (".qweight", ".SCB", ".absmax", ".weight_scale", ".weight_scale_inv", ".weight_packed")
"""How names end that GPTQ, AWQ, bitsandbytes, FP8 and compressed-tensors give to what they add."""
_EIGHT_BITS = ("I8", "U8", "F8", "F6", "F4")
"""How safetensors begins the names of dtypes that weights have by scales alone."""
_TIE = "A head that is the embedding matrix is saved once: set tie_word_embeddings to true at the top of config.json."
_TWO_HEADS = (
    "by its config.json the output head is the embedding matrix, and its weights hold another head. "
    "If that was trained, set tie_word_embeddings to false, in text_config too; else remove it from the files"
)


@contextmanager
def loading(setting: str, path: str, what: str) -> Iterator[None]:
    """Within it, what is `NOT_LOADABLE` of the model at a path is a UserError: setting, `what` fails, and why."""
    try:
        yield
    except NOT_LOADABLE as error:
        raise UserError(f"{setting}: {what}: {why_not_loaded(path, error)}") from error


def load_whole(
    loader: Any,
    origin: str,
    place: str | None,
    trust_remote_code: bool = False,
    as_stored: bool = False,
    **arguments: Any,
) -> PreTrainedModel:
    """A model with all of its weights from its files.

    Args:
        loader: a class with `from_pretrained`.
        origin: the setting and its value, for messages: `teacher.path=models/lm`.
        place: a folder or hub id; None where `config` and `state_dict` are among the arguments.
        trust_remote_code: whether code of its own is run; Transformers would ask on the terminal.
        as_stored: whether parameters keep the dtypes of the files; `dtype` is then float32, that of all else.
        arguments: further ones of `from_pretrained`.

    Raises:
        UserError: weights are missing, left over, of another shape, or not finite; the head is not the embedding
            matrix, which it is by the configuration; or as `refuse_unread`.
        NOT_LOADABLE: no model can be loaded.
    """
    with _without_load_report(), _dtypes_of_files() if as_stored else nullcontext():
        # Transformers raises at other shapes without naming them; the report names them, and is an error here
        model, report = loader.from_pretrained(
            place,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=trust_remote_code,
            **arguments,
        )
    if as_stored:
        for tensor in model.state_dict(keep_vars=True).values():
            if tensor.is_floating_point() and not isinstance(tensor, nn.Parameter):
                tensor.data = tensor.data.float()
    if (file := arguments.get("gguf_file")) is not None:
        refuse_unread(model, origin, str(place), file, arguments.get("revision"))
    _check_report(model, report, origin)
    if _has_two_heads(model):
        raise UserError(f"{origin}: {_TWO_HEADS}")
    for name, tensor in model.named_parameters():
        if tensor.is_floating_point() and not torch.stack(tensor.detach().aminmax()).isfinite().all():
            raise UserError(f"{origin}: {name} holds NaN or infinity: the file is damaged, or the model diverged")
    return model


def empty_model(loader: Any, config: PreTrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of a configuration on the meta device: names and shapes alone. `loader`: an auto class."""
    with torch.device("meta"):
        return loader.from_config(config, trust_remote_code=trust_remote_code)


def check_files(model: PreTrainedModel, folder: Path, origin: str) -> None:
    """Compare the tensors that the safetensors files in `folder` list with an `empty_model`.

    No weight is read, but two matrices where one is configured.

    Raises:
        UserError: as `load_whole`, or a file is missing, cut off or not safetensors, or matrices have eight bits, which
            without the scales that belong to them are no weights.
    """
    stored = listed(folder, origin)
    quantized = [name for name, one in stored.items() if len(one.shape) > 1 and one.dtype.startswith(_EIGHT_BITS)]
    if quantized:
        raise UserError(
            f"{origin}: its weights are quantized ({stored[quantized[0]].dtype}: {some(quantized)}), though its "
            f"config.json does not say so: training needs them as they were before. {_NOT_QUANTIZED}"
        )
    empty = {name: torch.empty(one.shape, device="meta") for name, one in stored.items()}
    _check_heads(check_tensors(model, empty, origin), stored, origin)


def check_tensors(model: PreTrainedModel, tensors: dict[str, Tensor], origin: str) -> PreTrainedModel:
    """Compare names and shapes of the tensors on the meta device with an `empty_model`, by Transformers' own loading.

    Returns the model as it was loaded, on the meta device.

    Raises:
        UserError: as `load_whole`.
    """
    loader: Any = type(model)
    with _without_load_report(), _without_progress_bar():
        loaded, report = loader.from_pretrained(
            None,
            config=model.config,
            state_dict=tensors,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    _check_report(loaded, report, origin)
    return loaded


def check_json(folder: str, setting: str) -> None:
    """Raise UserError where a JSON file of a model in a local folder is damaged; Transformers does not name it.

    Of a hub model, which has no such folder, the download is checked.
    """
    for name in _JSON_FILES:
        if (file := Path(folder, name)).is_file():
            try:
                _check_json(file, file.stat().st_mtime_ns)
            except UserError as error:
                raise UserError(f"{setting}: {error}") from error


@cache  # a model's files are read for many checks, and tokenizer.json may have 30 MB
def _check_json(file: Path, changed: int) -> None:
    """Check the file as it is since that time, once."""
    read_json(file, cure=COPY_AGAIN)


def refuse_adapter(path: str, revision: str | None, setting: str) -> None:
    """Raise UserError where the folder or hub model is, or holds, an adapter of peft's.

    Transformers would load the adapter beside the model, or without peft ignore it; vLLM ignores it.
    """
    local = Path(path).is_absolute() or Path(path).exists()
    found = find_adapter_config_file(path, revision=revision) if Path(path).is_dir() or not local else None
    if found is None:
        return
    base = read_json(Path(found), cure=COPY_AGAIN).get("base_model_name_or_path")
    raise UserError(
        f"{setting}: {path} holds an adapter of {base} (adapter_config.json), which is no model by itself. "
        f"To merge it, {_MERGE}. Where a model in the folder is meant without it, remove adapter_config.json."
    )


def refuse_quantized(config: PreTrainedConfig, path: str, setting: str) -> None:
    """Raise UserError for a checkpoint whose weights are quantized."""
    quantized = getattr(config, "quantization_config", None) or getattr(config, "compression_config", None)
    if not quantized:
        return
    settings = quantized if isinstance(quantized, dict) else quantized.to_dict()
    method = settings.get("quant_method", "see quantization_config in its config.json")
    raise UserError(
        f"{setting}: the weights of {path} are quantized ({method}): training needs them as they were before. "
        f"{_NOT_QUANTIZED}"
    )


def refuse_endless(config: PreTrainedConfig, path: str, setting: str) -> None:
    """Raise UserError for a model, or a part of one, that has more layers than any."""
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        if (layers := getattr(part, "num_hidden_layers", None) or 0) > MOST_LAYERS:
            raise UserError(f"{setting}: {path} has num_hidden_layers={layers}, which is no number of layers")


def refuse_unread(model: PreTrainedModel, origin: str, place: str, gguf_file: str, revision: str | None = None) -> None:
    """Raise UserError for a GGUF file with more than Transformers reads of it, whose `model` would be another one.

    So is one of several that a model is split into.

    Args:
        model: the one that Transformers makes of the file; an `empty_model` will do.
        origin: the setting and its value, for messages.
        place: the folder or hub id that the file is in.
        gguf_file: its name there.
        revision: of the hub id.
    """
    file = str(cached_file(place, gguf_file, revision=revision))
    if (count := gguf.parts(file)) > 1:
        raise UserError(
            f"{origin}: this GGUF file is one of {count}, and Transformers reads it alone: join them by llama.cpp's "
            "llama-gguf-split --merge FIRST_FILE WHOLE_FILE"
        )
    if unread := gguf.unread(model, file):
        raise UserError(
            f"{origin}: Transformers reads this GGUF file without {some(unread)}, and a {type(model).__name__} would "
            "compute other logits than the file's model. Take the safetensors of the same model"
        )


def _check_report(model: PreTrainedModel, report: dict[str, Any], origin: str) -> None:
    """Raise UserError for what Transformers' report on a loaded model says."""
    left_over = sorted(report["unexpected_keys"])
    shapes = [f"{name} {[*found]} instead of {[*wanted]}" for name, found, wanted in sorted(report["mismatched_keys"])]
    faults = {
        "missing, and would be random": sorted(report["missing_keys"]),
        "left over": left_over,
        "of another shape": shapes,
    }
    lines = [f"  {fault}: {some(names)}" for fault, names in faults.items() if names]
    if not lines:
        return
    cures = [cure for prefix, cure in _WRAPPERS.items() if any(name.startswith(prefix) for name in left_over)]
    if any(name.endswith(_OF_QUANTIZED) for name in left_over):
        cures.append(
            f"These are names of quantized weights: training needs them as they were before. {_NOT_QUANTIZED}."
        )
    if {*report["missing_keys"]} == {"lm_head.weight"} and _text(model).tie_word_embeddings:
        cures.append(_TIE)
    raise UserError(
        f"{origin}: its weights are not those of the {type(model).__name__} that its config.json describes.\n"
        + "\n".join(lines)
        + f"\n{(cures or [_CURE])[0]}"
    )


def _check_heads(model: PreTrainedModel, stored: dict[str, Stored], origin: str) -> None:
    """Raise UserError where the files hold two matrices for one, and these differ: they are read and compared.

    On the meta device Transformers keeps both, whatever they hold.
    """
    if _has_two_heads(model):
        shape = [*cast(torch.nn.Linear, model.get_output_embeddings()).weight.shape]
        alike = [name for name, one in stored.items() if one.shape == shape]
        if len(alike) == 2 and not torch.equal(*(stored[name].read() for name in alike)):
            raise UserError(f"{origin}: {_TWO_HEADS}")


def _has_two_heads(model: PreTrainedModel) -> bool:
    """Whether VLM and text are configured to share a matrix, and the model has two.

    Transformers keeps both where they differ, with a warning; vLLM drops the head.
    """
    head = model.get_output_embeddings()
    if head is None or not all(getattr(one, "tie_word_embeddings", False) for one in (model.config, _text(model))):
        return False
    return head.weight is not model.get_input_embeddings().weight


def _text(model: PreTrainedModel) -> PreTrainedConfig:
    return model.config.get_text_config(decoder=True)


@contextmanager
def _dtypes_of_files() -> Iterator[None]:
    """Let Transformers load each tensor in the dtype of its file. Of its own it has one dtype for all."""
    plan = PreTrainedModel._get_dtype_plan
    PreTrainedModel._get_dtype_plan = lambda self, dtype: {"*": None}
    try:
        yield
    finally:
        PreTrainedModel._get_dtype_plan = plan


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Mute Transformers' own table of weights that did not fit: it is an error here."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Mute Transformers' progress bar of loading."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
