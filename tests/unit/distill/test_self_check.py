"""Decoders that cannot be continued from their own KV are found before they teach, and stray fields say nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from families import FAMILIES, TEXT, WINDOW, each, shake
from transformers import AutoModelForCausalLM, DiffLlamaConfig, DogeConfig, FalconConfig, LlamaConfig, MoshiConfig

from lingu_ray.distill import Distiller, UserError
from lingu_ray.distill.decoder import field, layer_types, sliding_window
from lingu_ray.distill.head import scaling
from lingu_ray.distill.self_check import check_continuation
from lingu_ray.distill.teacher import Teacher

SIZES = {name: TEXT[name] for name in TEXT if name not in ("tie_word_embeddings", "initializer_range")}
STRAY: dict[str, Any] = {
    "sliding_window": WINDOW,
    "use_sliding_window": True,
    "layer_types": ["sliding_attention"] * TEXT["num_hidden_layers"],
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 5.0,
    "logit_scale": 3.0,
    "logits_scaling": 4.0,
    "cross_attention_layers": [1],
    "kv_lora_rank": 8,
}


@pytest.mark.parametrize("name", each())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoders_that_can_be_continued_pass(name, dtype):
    """Every family's, which is left with its own attention and window; under autocast, too."""
    model = FAMILIES[name].teacher().to(dtype)
    decoder = Teacher(model).decoder
    before = decoder.config._attn_implementation, sliding_window(decoder.config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check_continuation(decoder)
    assert (decoder.config._attn_implementation, sliding_window(decoder.config)) == before


def test_a_full_gpu_is_no_fault_of_the_decoder(monkeypatch):
    """The first product of a process asks for a handle of cuBLAS, beside whatever others hold of its GPU."""
    decoder = FAMILIES["idefics3"].teacher().get_decoder()
    full = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    monkeypatch.setattr("lingu_ray.distill.self_check._difference", Mock(side_effect=full))
    with pytest.raises(RuntimeError) as caught:
        check_continuation(decoder)
    assert caught.value is full


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MoshiConfig(**SIZES, sliding_window=WINDOW), "moshi .*: it computes something else than in one pass"),
        (DiffLlamaConfig(**SIZES | {"num_key_value_heads": 4}), "diffllama .*: layer 0 .* attends more than once"),
        (DogeConfig(**SIZES), "doge .*: The size of tensor"),
        (FalconConfig(**SIZES, new_decoder_architecture=True), "falcon .*: layer 0 did not donate .* code of its own"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_decoders_that_cannot_are_refused(config, reason):
    """A window that the layers do not keep to, two attentions a layer, another mask, an attention of its own."""
    torch.manual_seed(0)
    model = shake(AutoModelForCausalLM.from_config(config)).float()
    with pytest.raises(UserError, match=f"teacher: {reason}"):
        Teacher(model)


def test_fields_that_no_model_reads_say_nothing():
    """A Llama whose file has fields of other models, one of which it was made of perhaps, is a Llama."""
    stray = LlamaConfig(**SIZES, **STRAY)
    assert stray.sliding_window == WINDOW and all(field(stray, name) is None for name in STRAY)
    assert layer_types(stray) == ["full_attention"] * stray.num_hidden_layers and scaling(stray) == (1.0, None)
    ids_BT = torch.arange(3, 43).reshape(2, -1)
    kd = []
    for config in (LlamaConfig(**SIZES), stray):
        family = replace(FAMILIES["llava"], decoder=config)
        teacher = family.teacher()
        kd.append(Distiller(family.student(teacher), teacher)({"input_ids": ids_BT, "labels": ids_BT}).kd.item())
    assert max(kd) < 1e-6  # the student's decoder is the teacher's
