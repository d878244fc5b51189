"""The models that the settings name: loaded, and written as a run's starting point.

One in a bucket is read from the node's copy.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from lingu_ray.config import Attention, Config, StudentConfig, TeacherConfig, VisionConfig
from lingu_ray.distill.new_student import build_processor, build_student
from lingu_ray.distill.pair import check_text_only, known_ids
from lingu_ray.distill.teacher import Teacher
from lingu_ray.distill.towers import VisionParts
from lingu_ray.errors import UserError
from lingu_ray.paths import ask_hub, is_on_hub, model_origin, why_not_loaded
from lingu_ray.processors import read_processor, write_processor
from lingu_ray.runtime.models import towers
from lingu_ray.runtime.models.gguf_tokenizer import load_tokenizer
from lingu_ray.runtime.models.tensor_headers import stored_dtype
from lingu_ray.runtime.models.weights import (
    NOT_LOADABLE,
    check_json,
    empty_model,
    load_whole,
    loading,
    refuse_adapter,
    refuse_endless,
    refuse_quantized,
    refuse_unread,
)
from lingu_ray.storage import local_copy

log = logging.getLogger(__name__)


def load_config(path: str, revision: str | None, trust_remote_code: bool, setting: str) -> PreTrainedConfig:
    """The configuration of a model to train with. Raises UserError as `read_config`, and for quantized weights."""
    config = read_config(path, revision, trust_remote_code, setting)
    if Path(path).suffix != ".gguf":
        refuse_quantized(config, path, setting)
    return config


def read_config(path: str, revision: str | None, trust_remote_code: bool, setting: str) -> PreTrainedConfig:
    """The model's configuration.

    Raises:
        UserError: it cannot be loaded, needs code of its own, or is that of an adapter, or of a GGUF file that is not
            read whole, or has layers without end; a local folder is given a revision, or a hub id two. The message
            names the setting.
    """
    if is_on_hub(path):
        if revision is not None and "@" in path:
            raise UserError(f"{setting}: {path} names a revision, and revision={revision} is a second one: give one")
        ask_hub(setting, path)
    elif revision is not None:
        raise UserError(f"{setting}: {path} is no hub id, so revision={revision} means nothing there: leave it out")
    place, origin = model_origin(local_copy(path))
    if not origin:
        check_json(place, setting)
    refuse_adapter(place, revision, setting)
    try:
        config = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=trust_remote_code, **origin)
        refuse_endless(config, path, setting)
        if origin:
            refuse_unread(
                empty_model(AutoModelForCausalLM, config), f"{setting}={path}", place, revision=revision, **origin
            )
    except NOT_LOADABLE as error:
        if "trust_remote_code" in str(error):
            raise UserError(_own_code(path, setting)) from error
        raise UserError(f"{setting}: {why_not_loaded(path, error)}") from error
    return config


def load_teacher_config(settings: TeacherConfig) -> PreTrainedConfig:
    """The configuration of `teacher.path`, whose own code is never run (errors as `load_config`)."""
    return load_config(settings.path, settings.revision, False, "teacher.path")


def load_student_config(settings: StudentConfig) -> PreTrainedConfig:
    """The configuration of `student.path` (errors as `load_config`)."""
    assert settings.path is not None
    return load_config(settings.path, settings.revision, settings.trust_remote_code, "student.path")


def _own_code(path: str, setting: str, what: str = "model") -> str:
    cure = (
        "set student.trust_remote_code=true only if you trust whoever wrote it"
        if setting == "student.path"
        else "take a model of a class that Transformers has"
    )
    return f"{setting}: {path} comes with {what} code of its own (auto_map in its JSON files), which is not run: {cure}"


def load_teacher(
    settings: TeacherConfig, dtype: torch.dtype, device: torch.device, vocabulary: int | None = None
) -> Teacher:
    """The teacher, frozen; `vocabulary`: how many ids it knows; None: as `teacher_tokens` gives them.

    Raises UserError when there is no causal LM at `teacher.path`, or not all of one.
    """
    model, known = _load_lm(settings, dtype), vocabulary or teacher_vocabulary(settings)
    nn.Module.to(model, device)
    return Teacher(model, known)


def load_teacher_tokenizer(settings: TeacherConfig) -> PreTrainedTokenizerBase:
    """The teacher's tokenizer (errors as `teacher_tokens`)."""
    return teacher_tokens(settings)[0]


def teacher_vocabulary(settings: TeacherConfig) -> int:
    """How many ids the teacher knows, without its weights (errors as `teacher_tokens`)."""
    return teacher_tokens(settings)[1]


def teacher_tokens(settings: TeacherConfig) -> tuple[PreTrainedTokenizerBase, int]:
    """The teacher's tokenizer, and how many ids it knows.

    Raises:
        UserError: the model is no text-only LM, or its tokenizer cannot be loaded, or has tokens for a part of its ids.
    """
    model = load_teacher_config(settings)
    check_text_only(model, f"teacher.path={settings.path}")
    with loading("teacher.path", settings.path, "its tokenizer cannot be loaded"):
        place, origin = model_origin(local_copy(settings.path))
        tokenizer = load_tokenizer(place, revision=settings.revision, trust_remote_code=False, **origin)
    return tokenizer, known_ids(tokenizer, model, f"teacher.path={settings.path}")


def load_student(settings: StudentConfig, attention: Attention = "sdpa", as_stored: bool = False) -> PreTrainedModel:
    """The VLM of `student.path`, in float32; `as_stored`: each parameter in the dtype of its file, which is mapped.

    Raises UserError when there is none, or not all of one.
    """
    assert settings.path is not None
    with loading("student.path", settings.path, "cannot be loaded as a VLM"):
        return load_whole(
            AutoModelForImageTextToText,
            f"student.path={settings.path}",
            local_copy(settings.path),
            as_stored=as_stored,
            revision=settings.revision,
            dtype=torch.float32,
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=True,
            attn_implementation=None if attention == "sdpa" else attention,  # None: eager where a model has no SDPA
        )


def empty_student(settings: StudentConfig) -> PreTrainedModel:
    """The VLM of `student.path` on the meta device: names and shapes alone."""
    return empty_model(AutoModelForImageTextToText, load_student_config(settings), settings.trust_remote_code)


def initial_student(config: Config, initial_model: Path | str) -> StudentConfig:
    """Where a run's student is loaded from at its start: `student.path`, or the new model that the run has written."""
    return config.student if config.student.path is not None else StudentConfig(path=str(initial_model))


def export_dtype(settings: StudentConfig) -> torch.dtype:
    """The dtype of the student's published weights, which its export has; of a new model float32."""
    if settings.path is None:
        return torch.float32
    return published_dtype(load_student_config(settings), settings.path, "student.path")


def published_dtype(config: PreTrainedConfig, path: str, setting: str) -> torch.dtype:
    """The dtype of a model's published weights.

    Of some VLMs only the text's configuration names it. Where none does, it is that of the files of a local folder, and
    float32 of a hub's.
    """
    named = config.dtype or config.get_text_config(decoder=True).dtype
    if named is None and (folder := Path(local_copy(path))).is_dir():
        named = stored_dtype(folder, f"{setting}={path}")
    return cast(torch.dtype, named or torch.float32)


def load_processor(settings: StudentConfig) -> ProcessorMixin:
    """The processor that belongs to `student.path`. Raises UserError where there is none, or none for images."""
    assert settings.path is not None
    trusted = settings.trust_remote_code
    try:
        processor = read_processor(local_copy(settings.path), settings.revision, trust_remote_code=trusted)
    except NOT_LOADABLE as error:
        if "trust_remote_code" in str(error):
            raise UserError(_own_code(settings.path, "student.path", "processor")) from error
        cure = " Install torchvision, which this processor needs." if "torchvision" in str(error) else ""
        why = why_not_loaded(settings.path, error)
        raise UserError(f"student.path: its processor cannot be loaded.{cure} {why}") from error
    if getattr(processor, "image_processor", None) is None:
        kind = type(processor).__name__
        raise UserError(f"student.path={settings.path}: its processor, a {kind}, takes no images: name a VLM")
    return processor


def make_processor(config: Config) -> ProcessorMixin:
    """The student's processor: that of an existing VLM, or a new one made of the teacher's tokenizer.

    Loads no weights. Raises UserError where there is none.
    """
    settings = config.student.from_teacher
    if settings is None:
        return load_processor(config.student)
    return build_processor(load_teacher_tokenizer(config.teacher), make_vision(settings))


def prepare_student(config: Config, folder: Path) -> None:
    """Write the starting point of a run: a new VLM's weights and processor, or the processor of an existing one."""
    processor = make_processor(config)
    write_processor(processor, folder)
    settings = config.student.from_teacher
    if settings is not None:
        teacher, vision = _load_lm(config.teacher, torch.float32), make_vision(settings)
        tower = towers.load_tower(settings, vision)
        build_student(teacher, processor, vision, config.seed, tower).save_pretrained(folder)


def make_vision(settings: VisionConfig) -> VisionParts:
    """The vision of a new VLM, without weights. Raises UserError for a tower that cannot be taken, or does not fit."""
    if settings.tower is None:
        return towers.random_vision(settings)
    found = load_config(settings.tower, settings.tower_revision, False, towers.SETTING)
    return towers.pretrained_vision(settings, found)


def _load_lm(settings: TeacherConfig, dtype: torch.dtype) -> PreTrainedModel:
    place, gguf = model_origin(local_copy(settings.path))
    weights: dict[str, Any] = gguf or {"use_safetensors": True}
    origin = f"teacher.path={settings.path}"
    with loading("teacher.path", settings.path, "cannot be loaded as a causal LM"):
        return load_whole(AutoModelForCausalLM, origin, place, revision=settings.revision, dtype=dtype, **weights)
