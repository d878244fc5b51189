"""What the trace says a pass keeps is what autograd keeps in a real one, family by family."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from families import FAMILIES
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, PreTrainedModel

from lingu_ray.cost.models import active_parameters
from lingu_ray.cost.trace import decoder_pass, loss_pass
from lingu_ray.distill.divergence import divergence_of
from lingu_ray.distill.head import OutputHead
from lingu_ray.runtime.models.weights import empty_model

ROWS, TOKENS = 2, 40


def decoder_of(name: str, on: str) -> PreTrainedModel:
    """The text decoder of a family, real or on the meta device."""
    family = FAMILIES[name]
    text = deepcopy(family.decoder)
    model = empty_model(AutoModelForCausalLM, text) if on == "meta" else AutoModelForCausalLM.from_config(text)
    model.set_attn_implementation(family.attention)
    return model.get_decoder().train()


def saved(decoder: PreTrainedModel, bf16: bool) -> int:
    """Bytes that a real forward pass over masked rows saves, beside weights."""
    weights = {p.untyped_storage().data_ptr() for p in decoder.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    embedding = torch.randn(ROWS, TOKENS, decoder.config.hidden_size, requires_grad=True)
    eager = decoder.config._attn_implementation == "eager"
    mask = torch.zeros(ROWS, 1, TOKENS, TOKENS) if eager else torch.ones(ROWS, 1, TOKENS, TOKENS).tril().bool()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), saved_tensors_hooks(keep, lambda tensor: tensor):
        output = decoder(inputs_embeds=embedding, attention_mask=mask, use_cache=False)
    own = {embedding.untyped_storage().data_ptr(), mask.untyped_storage().data_ptr()} | weights
    assert output.last_hidden_state.requires_grad
    return sum(size for place, size in found.items() if place not in own)


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["idefics3", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "gemma3", "paligemma2"])
def test_kept_is_what_autograd_saves(name: str, bf16: bool):
    """Bytes saved by a real forward pass, as hooks see them, and those of the trace: within 5 %."""
    told = decoder_pass(decoder_of(name, "meta"), ROWS, TOKENS, masked=True, bf16=bf16, checkpointing=False)
    assert told.kept + told.rounded == pytest.approx(saved(decoder_of(name, "cpu"), bf16), rel=0.05)


def test_a_token_meets_its_own_experts_alone():
    """Of a mixture the weights of those that it is sent to count, as of all other layers."""
    decoder = decoder_of("qwen3_vl_moe", "meta")
    text = decoder.config
    of_one = text.num_hidden_layers * 3 * text.hidden_size * text.moe_intermediate_size  # gate, up, down
    idle = text.num_experts - text.num_experts_per_tok
    assert active_parameters(decoder) == sum(p.numel() for p in decoder.parameters()) - idle * of_one


@pytest.mark.slow
def test_what_takes_less():
    """No mask, checkpointing and a frozen decoder each keep less; the peak is above what is kept."""
    decoder = decoder_of("idefics3", "meta")

    def kept(masked: bool = True, checkpointing: bool = False) -> int:
        held = decoder_pass(decoder, ROWS, TOKENS, masked, bf16=True, checkpointing=checkpointing)
        assert held.peak > held.kept
        return held.kept

    whole = kept()
    assert kept(masked=False) < whole and kept(checkpointing=True) < whole / 3
    assert all(parameter.device.type == "meta" for parameter in decoder.parameters())


def test_loss_makes_no_logits_of_all_tokens():
    """A loss over many chunks holds less than one tensor of all logits, and keeps the gradients alone."""
    head = OutputHead(torch.empty(2048, 16, device="meta"))
    divergence = divergence_of("forward_kl", 0.5, None)
    held, on_gpu = (
        loss_pass(
            head, head, 16, 20_000, bf16=False, trained=True, temperature=1.0, divergence=divergence, on_gpu=on_gpu
        )
        for on_gpu in (False, True)
    )
    assert held.peak < on_gpu.peak  # whose chunks are larger
    assert held.peak < 4 * 20_000 * 2048
    assert held.kept == pytest.approx(4 * (20_000 * 16 + 2048 * 16), rel=0.6)
