"""The models that the settings name, before weights are loaded: whether they are a pair, and their files whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from lingu_ray.config import Config
from lingu_ray.distill.decoder import longest_row, prompt_window
from lingu_ray.distill.new_student import check_teacher
from lingu_ray.distill.pair import check_kind, check_text_only, compare_decoders
from lingu_ray.distill.student import Student
from lingu_ray.distill.teacher import Teacher
from lingu_ray.errors import UserError
from lingu_ray.runtime.models import towers
from lingu_ray.runtime.models.load import load_config, load_student_config, load_teacher_config, make_vision
from lingu_ray.runtime.models.masks import check_masks
from lingu_ray.runtime.models.weights import NOT_LOADABLE, check_files, empty_model, loading
from lingu_ray.storage import local_copy


def check_pair(config: Config) -> None:
    """Check from the models' configurations alone that student and teacher fit each other and the settings.

    Raises:
        UserError: one, or a new VLM's tower, cannot be loaded or is of the wrong kind, no VLM can be made of the
            teacher, the decoders differ (each field with both values), or one has parts that the method cannot use.
    """
    teacher, origin = load_teacher_config(config.teacher), f"teacher.path={config.teacher.path}"
    check_text_only(teacher, origin)
    check_kind(teacher, origin)
    _check_length(config, teacher, "teacher.path")
    settings = config.student
    if settings.from_teacher is not None:
        make_vision(settings.from_teacher)
    with _named(origin, "a causal LM"):
        lm = empty_model(AutoModelForCausalLM, teacher)
        _require_sdpa(lm)
        if settings.from_teacher is not None:
            check_teacher(lm)
        Teacher(lm)
    if settings.path is None:
        return
    student, origin = load_student_config(settings), f"student.path={settings.path}"
    if not hasattr(student, "vision_config"):
        raise UserError(
            f"{origin}: {student.model_type} has no vision_config, so it is no vision-language "
            "model; to make one from the teacher use student.from_teacher"
        )
    check_masks(config.train, student)
    text = student.get_text_config(decoder=True)
    window = prompt_window(student)
    if window is not None and config.corpus.max_length > window:
        raise UserError(
            f"corpus.max_length={config.corpus.max_length} is above the {window} tokens PaliGemma's layers see"
        )
    check_kind(text, origin)
    compare_decoders(text, teacher)
    _check_length(config, text, "student.path")
    with _named(origin, "a VLM"):
        vlm = empty_model(AutoModelForImageTextToText, student, settings.trust_remote_code)
        _require_sdpa(vlm)
        Student(vlm).parameter_groups()


def _require_sdpa(model: PreTrainedModel) -> None:
    """Raise UserError for a decoder that attends in a way of its own, such as with sinks; soft caps are known."""
    decoder = model.config.get_text_config(decoder=True)
    if decoder._attn_implementation == "eager" and not getattr(decoder, "attn_logit_softcapping", None):
        raise UserError(f"a {type(model).__name__} does not support SDPA, so its attention is not known to be plain")


@contextmanager
def _named(origin: str, kind: str) -> Iterator[None]:
    """Errors about a model without weights as a UserError that begins with its setting."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
    except NOT_LOADABLE as error:
        raise UserError(f"{origin}: cannot be loaded as {kind}. {error}") from error


def _check_length(config: Config, decoder: PreTrainedConfig, setting: str) -> None:
    """Refuse rows in which RoPE's frequencies would depend on other rows, so that keys would not fit queries."""
    longest = longest_row(decoder)
    if longest is not None and config.corpus.max_length > longest:
        raise UserError(
            f"corpus.max_length={config.corpus.max_length} is above the {longest} tokens from which {setting}, a "
            f"{decoder.model_type}, has another RoPE (rope_type) by the longest row of a batch: lower it"
        )


def check_weights(config: Config) -> None:
    """Check that the weights in local folders are those of the models, by names and shapes; none is read.

    What a hub has is checked when it is loaded, as GGUF files are.

    Raises:
        UserError: weights are missing, left over, of another shape, or a file is cut off or absent.
    """
    paths = {"teacher.path": (config.teacher.path, AutoModelForCausalLM, False)}
    if config.student.path is not None:
        paths["student.path"] = (config.student.path, AutoModelForImageTextToText, config.student.trust_remote_code)
    if config.student.tower is not None:
        paths[towers.SETTING] = (config.student.tower[0], AutoModel, False)
    for setting, (path, loader, trust_remote_code) in paths.items():
        folder = Path(local_copy(path))
        if not folder.is_dir():
            continue
        with loading(setting, path, "cannot be loaded"):
            loaded = load_config(path, None, trust_remote_code, setting)
            check_files(empty_model(loader, loaded, trust_remote_code), folder, f"{setting}={path}")
