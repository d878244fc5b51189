"""Checks that a student VLM and a text-only LM are a pair: the LM that the student's decoder came from.

The teacher continues from the student's KV without any projection. That is only right when both decoders compute the
same function of their weights, so every field of their configurations that has a part in it is compared, before
anything is loaded.
"""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lingu_ray.distill.decoder import (
    ATTENTION_KINDS,
    field,
    head_dim,
    layer_types,
    rope_parameters,
    sliding_window,
)
from lingu_ray.errors import UserError

# Fields without a part in what a decoder computes, and those that are compared in another form.
_NOT_COMPARED = re.compile(
    r"vocab_size.*|max_position_embeddings|.*_token_id|tie_word_embeddings|use_cache|.*dropout.*|.*pdrop|init.*|dtype|"
    r"pretraining_tp|output_.*|router_aux_loss_coef|"
    r"use_bidirectional_attention|"  # of PaliGemma's prompt, which the teacher does not read
    r"head_dim|rope_.*|layer_types|sliding_window.*|use_sliding_window|max_window_layers|_.*"
)
_FLOAT32 = 1e-6  # what a fraction may be off by for having been one in float32
# Text decoders of VLMs, and the family of LMs whose weights they are made of, and compute with alike. PaddleOCR-VL is
# none: it turns the halves of a head by RoPE, and ERNIE 4.5 its neighbors.
# A GGUF file calls Mistral `llama`; its sliding window is compared by itself.
_FAMILIES = {
    "qwen2_5": "qwen2",
    "glm4v": "glm4",
    "glm4v_moe": "glm4_moe",
    "exaone4_5": "exaone4",
    "mistral": "llama",
}
# What one class of a family has alone, and what the other's decoder computes as.
_OF_ONE_CLASS: dict[str, dict[str, bool]] = {
    "llama": {"attention_bias": False, "mlp_bias": False},
    "glm4_moe": {"use_qk_norm": False},
    "qwen3_moe": {"norm_topk_prob": True},
}


def check_models(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Raise UserError when two loaded models are no pair: wrong kinds of model, or decoders that differ."""
    for name, model in (("student", student), ("teacher", teacher)):
        if not isinstance(model, PreTrainedModel):
            raise UserError(
                f"{name}: must be the Transformers model itself; it is a {type(model).__name__}. Where that is around "
                "it: take get_base_model() of peft's model, compile() in place, wrap the Distiller for several devices"
            )
    check_text_only(teacher.config, "teacher")
    if not _has_tower(student.config):
        raise UserError(
            f"student: {type(student).__name__} is no vision-language model, or none with a tower of its own: its "
            "configuration has no vision_config or audio_config"
        )
    text = student.config.get_text_config(decoder=True)
    check_kind(teacher.config, "teacher")
    check_kind(text, "student")
    compare_decoders(text, teacher.config)


def check_one_device(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Raise UserError for a model whose weights are on several devices; those that are offloaded (`meta`) are none."""
    for name, model in (("student", student), ("teacher", teacher)):
        devices = sorted({str(p.device) for p in model.parameters()} - {"meta"})
        if len(devices) > 1:
            raise UserError(
                f"{name}: its weights are on {', '.join(devices)}, as device_map='auto' spreads them: load it on one "
                "device, the other model's, device_map={'': 0} for instance"
            )


def check_no_auxiliary_loss(student: PreTrainedModel) -> None:
    """Raise UserError for a mixture of experts that is set to add its routers' loss, which Transformers' classes do."""
    if _has(student.config.get_text_config(decoder=True), "output_router_logits"):
        raise UserError(
            "student: output_router_logits asks for the auxiliary loss of its experts, which is no part of this loss: "
            "set it to False in the configuration of its decoder"
        )


def check_separate(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Raise UserError when a weight of the student lies in the memory of one of the teacher's.

    As one parameter it would be frozen with the teacher; as two, training the student would train the teacher.
    """
    places = {_place(parameter) for parameter in teacher.parameters()} - {0}
    for name, parameter in student.named_parameters():
        if _place(parameter) in places:
            raise UserError(
                f"student: {name} lies in the teacher's memory, so that the teacher would change with the student: "
                "load the teacher again, or copy its weights (load_state_dict without assign=True)"
            )


def _place(parameter: Tensor) -> int:
    """Where a parameter lies in memory; 0 where it has none of its own, as those of torchao, which hold several."""
    return 0 if hasattr(parameter, "__tensor_flatten__") else parameter.untyped_storage().data_ptr()


def check_frequencies(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Raise UserError where a cast of a whole model has rounded the frequencies of its decoder's RoPE.

    A dtype given at loading leaves them in float32. Rounded to 16 bits they turn a key a thousand tokens away by
    radians: queries of one decoder and keys of the other then have no common place to count from.
    """
    for model_name, model in (("student", student), ("teacher", teacher)):
        for name, buffer in model.get_decoder().named_buffers():
            if name.endswith("inv_freq") and buffer.itemsize < torch.float32.itemsize:
                raise UserError(
                    f"{model_name}: the frequencies of its RoPE were rounded to {buffer.dtype} with the weights, as "
                    ".to(dtype), .half() and .bfloat16() do: load it in the dtype that it should have "
                    "(from_pretrained(…, dtype=…)), or compute in that dtype by torch.autocast"
                )


def compare_decoders(student: PreTrainedConfig, teacher: PreTrainedConfig) -> None:
    """Raise UserError naming every field of the two decoders' configurations in which they compute differently."""
    _refuse_uneven(student, "student")
    _refuse_uneven(teacher, "teacher")
    pairs: dict[str, tuple[Any, Any]] = {"model_type": (student.model_type, teacher.model_type)}
    if _family(student) == _family(teacher):
        del pairs["model_type"]
    for name in sorted(_declared(student) & _declared(teacher)):
        pairs[name] = getattr(student, name, None), getattr(teacher, name, None)
    for name, other in _OF_ONE_CLASS.get(_family(student), {}).items():
        pairs[name] = getattr(student, name, other), getattr(teacher, name, other)
    pairs["head_dim"] = (head_dim(student), head_dim(teacher))
    ropes = _text_rope(student), _text_rope(teacher)
    for kind in {**ropes[0], **ropes[1]}:
        pairs[f"rope_parameters {kind}".strip()] = (ropes[0].get(kind), ropes[1].get(kind))
    pairs["sliding_window"] = (sliding_window(student), sliding_window(teacher))
    if student.num_hidden_layers == teacher.num_hidden_layers:
        pairs["layer_types"] = (layer_types(student), layer_types(teacher))
    different = [f"  {name}: student {a}, teacher {b}" for name, (a, b) in pairs.items() if not _alike(a, b)]
    if different:
        cure = "Take the LM that the student's decoder was initialized from as teacher."
        if "model_type" in pairs:  # as of PaddleOCR-VL and ERNIE 4.5
            cure += (
                " If this is that one, the student's class computes otherwise with its weights: take another student."
            )
        raise UserError(
            "student and teacher do not fit: the teacher continues from the student's keys and values, so both "
            "decoders must have the same architecture.\n" + "\n".join([*different, cure])
        )


def _alike(a: Any, b: Any) -> bool:
    """Whether two values are the same, fractions as float32 has them: GGUF files hold no others."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=_FLOAT32)
    return a == b


def check_tokenizers(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Raise UserError when an id that both vocabularies have means different tokens.

    Reserved tokens are renamed when a VLM is made: up to a hundredth of the ids may be, to tokens that the teacher has
    nowhere.
    """
    teacher_ids = teacher.get_vocab()
    student_tokens = {i: token for token, i in student.get_vocab().items()}
    teacher_tokens = {i: token for token, i in teacher_ids.items()}
    shared = student_tokens.keys() & teacher_tokens.keys()
    different = sorted(i for i in shared if student_tokens[i] != teacher_tokens[i])
    moved = [i for i in different if student_tokens[i] in teacher_ids]
    if moved or len(different) > 0.01 * len(shared):
        i = (moved or different)[0]
        raise UserError(
            f"student and teacher tokenize differently: {len(different)} of {len(shared)} shared ids, first {i}: "
            f"student {student_tokens[i]!r}, teacher {teacher_tokens[i]!r}. KD compares distributions id by id."
        )


def known_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedConfig, name: str) -> int:
    """How many of the model's ids, from 0 on, its tokenizer has tokens for: it may have more, that divide well.

    In GGUF files these have names, too.

    Raises:
        UserError: for a part of them alone, so that it is not the model's own; the message begins with `name`.
    """
    own = (i for token, i in tokenizer.get_vocab().items() if token != f"[PAD{i}]")
    known, rows = max(own, default=-1) + 1, model.vocab_size
    if known < rows / 2:  # Transformers makes an empty one of a folder that has none
        raise UserError(
            f"{name}: its tokenizer has tokens for {known} of the model's {rows} ids: put the files of its own "
            "(tokenizer.json, tokenizer_config.json) beside the model"
        )
    return min(known, rows)


def check_text_only(config: PreTrainedConfig, setting: str) -> None:
    """Raise UserError for a model with a tower as a teacher."""
    if _has_tower(config):
        raise UserError(
            f"{setting}: {config.model_type} is not a text-only causal LM: name the one that the student's decoder "
            "was made of, as the student's model card says (of SmolVLM-256M-Instruct SmolLM2-135M-Instruct)"
        )


def check_kind(config: PreTrainedConfig, setting: str) -> None:
    """Raise UserError for an architecture that does not keep one key and value for each position and layer."""
    _refuse_uneven(config, setting)
    reasons = {
        "is an encoder-decoder": config.is_encoder_decoder,
        "reads images by cross-attention, so they are not in its prompt's KV": _has(config, "cross_attention_layers")
        or _has(config, "cross_layer_interval"),
        "keeps compressed keys and values (MLA)": _has(config, "kv_lora_rank"),
        "has layers that read keys and values of others": _has(config, "num_kv_shared_layers"),
        "has no attention heads": not _has(config, "num_attention_heads"),
        "has layers without plain attention": not set(layer_types(config)) <= ATTENTION_KINDS,
    }
    for reason, holds in reasons.items():
        if holds:
            raise UserError(
                f"{setting}: {config.model_type} {reason}. The teacher continues from the student's keys and values, "
                "so both must be plain decoders with self-attention in every layer"
            )


def _refuse_uneven(config: PreTrainedConfig, setting: str) -> None:
    """Raise UserError where layers differ in sizes, of which there is no one value to read (Gemma 4)."""
    if config.is_heterogeneous:
        raise UserError(
            f"{setting}: the layers of {config.model_type} have keys and values of different sizes, which is not "
            "supported: take a model whose layers are alike"
        )


def _has_tower(config: PreTrainedConfig) -> bool:
    return any(_has(config, f"{kind}_config") for kind in ("vision", "audio"))


def _has(config: PreTrainedConfig, name: str) -> bool:
    return bool(field(config, name))


def _declared(config: PreTrainedConfig) -> set[str]:
    """The fields that the configuration's own class declares, of those that are compared by their values.

    A class that Transformers does not have may declare none: then all count that are not in every configuration.
    """
    classes = type(config).__mro__[: type(config).__mro__.index(PreTrainedConfig)]
    fields = {name for kind in classes for name in inspect.get_annotations(kind)}
    if not type(config).__module__.startswith("transformers."):
        fields |= vars(config).keys() - vars(PreTrainedConfig()).keys()
    return {name for name in fields if not _NOT_COMPARED.fullmatch(name)}


def _family(config: PreTrainedConfig) -> str:
    """The family of LMs that a decoder belongs to: `qwen2` of `qwen2_5_vl_text`."""
    name = re.sub(r"(_vl|_omni)?(_moe)?(_text)?$", r"\2", config.model_type)
    return _FAMILIES.get(name, name)


def _text_rope(config: PreTrainedConfig) -> dict[str, Any]:
    """RoPE as text sees it in rows up to `longest_row`, by kind of layer."""
    found = {kind: _in_text(rope) for kind, rope in rope_parameters(config).items()}
    for rope in found.values():
        if rope.get("rope_type") in ("longrope", "yarn"):  # without a factor it is this, and scales keys and queries
            rope.setdefault("factor", config.max_position_embeddings / rope["original_max_position_embeddings"])
    return found


def _in_text(rope: dict[str, Any]) -> dict[str, Any]:
    """RoPE without what makes no difference to text: how M-RoPE splits the axes, and how `dynamic` grows beyond."""
    # `type` is how earlier files write `rope_type`, which Transformers sets beside it
    plain = {n: v for n, v in rope.items() if v is not None and n != "type" and not n.startswith("mrope_")}
    if plain.get("rope_type") == "dynamic":
        plain.pop("factor", None)
    same_as_default = plain.get("rope_type") in ("mrope", "dynamic")
    return plain | {"rope_type": "default"} if same_as_default else plain
