"""The pair: a student VLM and the text-only LM that its decoder came from. Do they fit?

The teacher continues from the student's KV without any projection. That is only right when both decoders have the same
layers, key/value heads, head dimension, RoPE and attention kind, so all of it is compared, on the configurations alone,
before anything is loaded.
"""

from __future__ import annotations

from typing import Any, cast

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from lingu_ray.config import Config
from lingu_ray.errors import UserError

_COMPARED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
SCALED_HEADS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""Settings of decoders whose output head transforms its logits; neither loss nor scoring knows them."""


def load_config(path: str, revision: str | None, trust_remote_code: bool, setting: str, **kwargs) -> PreTrainedConfig:
    """The model's configuration; UserError naming the setting when it cannot be had."""
    try:
        return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code, **kwargs)
    except (OSError, ValueError) as error:
        raise UserError(f"{setting}={path}: no model configuration could be loaded from there. {error}") from error


def check_pair(config: Config) -> None:
    """Compare the decoders' configurations; raises UserError with field and both values where they differ."""
    teacher_kwargs = {"gguf_file": config.teacher.gguf_file} if config.teacher.gguf_file else {}
    teacher = load_config(config.teacher.path, config.teacher.revision, False, "teacher.path", **teacher_kwargs)
    if teacher.is_encoder_decoder or hasattr(teacher, "vision_config"):
        raise UserError(f"teacher.path={config.teacher.path}: a {teacher.model_type} is not a text-only causal LM")
    if config.student.path is None:
        return
    settings = config.student
    student = load_config(config.student.path, settings.revision, settings.trust_remote_code, "student.path")
    if not hasattr(student, "vision_config"):
        raise UserError(
            f"student.path={settings.path}: a {student.model_type} has no vision_config, so it is no vision-language "
            "model; to make one from the teacher use student.from_teacher"
        )
    compare_decoders(student.get_text_config(decoder=True), teacher)


def compare_decoders(student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
    """Raise UserError naming every architecture field in which the two decoders' configurations differ."""
    pairs = {name: (getattr(student, name, None), getattr(teacher, name, None)) for name in _COMPARED}
    pairs["head_dim"] = (_head_dim(student), _head_dim(teacher))
    pairs["rope_parameters"] = (_rope(student), _rope(teacher))
    pairs["sliding_window"] = (_window(student), _window(teacher))
    pairs["layer_types"] = (_layer_types(student), _layer_types(teacher))
    different = [f"  {name}: student {a}, teacher {b}" for name, (a, b) in pairs.items() if a != b]
    if different:
        raise UserError(
            "student and teacher do not fit: the teacher continues from the student's keys and values, so both "
            "decoders must have the same architecture.\n" + "\n".join(different) + "\n"
            "Take the LM that the student's decoder was initialised from as teacher.path."
        )
    for name in SCALED_HEADS:
        if getattr(student, name, None) not in (None, 1, 1.0):
            raise UserError(f"the student's output head transforms its logits ({name}), which the loss does not know")


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
            f"student and teacher tokenise differently: {len(different)} of {len(shared)} shared ids, first {i}: "
            f"student {student_tokens[i]!r}, teacher {teacher_tokens[i]!r}. KD compares distributions id by id."
        )


def load_teacher_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """The teacher's tokenizer."""
    kwargs = {"gguf_file": config.teacher.gguf_file} if config.teacher.gguf_file else {}
    tokenizer = AutoTokenizer.from_pretrained(config.teacher.path, revision=config.teacher.revision, **kwargs)
    return cast(PreTrainedTokenizerBase, tokenizer)


def _head_dim(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _rope(config: PreTrainedConfig) -> dict[str, Any]:
    parameters = dict(getattr(config, "rope_parameters", None) or {})
    return {name: value for name, value in sorted(parameters.items()) if value is not None}


def _window(config: PreTrainedConfig) -> int | None:
    used = getattr(config, "use_sliding_window", True)
    return getattr(config, "sliding_window", None) if used else None


def _layer_types(config: PreTrainedConfig) -> list[str]:
    return list(getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers)
