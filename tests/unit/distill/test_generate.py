"""Generated answers follow the model's own distribution, whatever generation settings its checkpoint came with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import FAMILIES, SIGLIP, TEXT
from tiny import tiny_student, tiny_teacher
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    Cohere2Config,
    GenerationConfig,
)

from lingu_ray.distill.generate import Prompt, generate_answers
from lingu_ray.distill.head import output_head
from lingu_ray.distill.inputs import ModelInputs, token_arguments

END, PAD = 2, 0
PROMPTS = ([5, 6, 7, 8, 9, 5, 6, 7], [11, 12, 11], [20, 21, 22, 20, 21])
PUBLISHED = {
    "beams": {"num_beams": 3, "length_penalty": 2.0},
    "penalties": {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "encoder_repetition_penalty": 3.0},
    "sampling": {"do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.1, "min_p": 0.5, "typical_p": 0.2},
    "tokens": {"suppress_tokens": list(range(30, 300)), "bad_words_ids": [[7]], "forced_eos_token_id": END},
    "lengths": {"min_new_tokens": 12, "max_length": 9, "exponential_decay_length_penalty": (1, 1.5)},
    "several": {"num_return_sequences": 2, "do_sample": True, "return_dict_in_generate": True, "output_scores": True},
}


@pytest.fixture(scope="module")
def model() -> Any:
    """A student with random weights."""
    return tiny_student(tiny_teacher()).eval()


def answers(model: Any, temperature: float = 0.0) -> list[list[int]]:
    """Up to 10 tokens after each prompt."""
    torch.manual_seed(1)
    prompts = [Prompt(torch.tensor(ids), torch.zeros(len(ids), dtype=torch.bool)) for ids in PROMPTS]
    found = generate_answers(model, prompts, {}, [END], PAD, max_new_tokens=10, temperature=temperature)
    return [answer_T.tolist() for answer_T in found]


@torch.no_grad()
def greedy(model: Any, ids: list[int]) -> list[int]:
    """The likeliest token, again and again, without cache or padding."""
    answer: list[int] = []
    while len(answer) < 10 and END not in answer:
        logits_TV: Tensor = model(input_ids=torch.tensor([ids + answer])).logits[0]
        answer.append(int(logits_TV[-1].argmax()))
    return answer


@pytest.fixture(scope="module")
def own_answers(model: Any) -> tuple[list[list[int]], list[list[int]]]:
    """Greedy and sampled, where the checkpoint says nothing."""
    return [greedy(model, ids) for ids in PROMPTS], answers(model, temperature=1.3)


@pytest.mark.parametrize("published", PUBLISHED.values(), ids=PUBLISHED)
def test_the_checkpoints_generation_settings_have_no_effect(model, own_answers, published):
    """Beams, penalties, sampling, forbidden and forced tokens, lengths: greedy is greedy, samples are the model's."""
    plain, sampled = own_answers
    own, model.generation_config = model.generation_config, GenerationConfig(**published)
    try:
        before = model.generation_config.to_dict()
        assert answers(model) == plain
        assert answers(model, temperature=1.3) == sampled != plain
        assert model.generation_config.to_dict() == before
    finally:
        model.generation_config = own


def aya() -> Any:
    """Its class leaves the scale of its decoder's logits out."""
    text = Cohere2Config(**TEXT, head_dim=32, logit_scale=0.25)
    return AyaVisionForConditionalGeneration(AyaVisionConfig(text_config=text, vision_config=SIGLIP))


def paligemma() -> Any:
    """Its class leaves the soft cap of its decoder's logits out."""
    return FAMILIES["paligemma2"].student(large_logits())


def large_logits() -> Any:
    """A Gemma 2 whose soft cap shows."""
    teacher = FAMILIES["paligemma2"].teacher()
    torch.nn.init.ones_(teacher.model.norm.weight)  # which multiplies by 1 more
    return teacher


MODELS: dict[str, Callable[[], Any]] = {
    "neither scale nor soft cap": lambda: tiny_student(tiny_teacher()),
    "scale left out": aya,
    "soft cap left out": paligemma,
    "scale applied": lambda: AutoModelForCausalLM.from_config(Cohere2Config(**TEXT, head_dim=32, logit_scale=0.25)),
    "soft cap applied": large_logits,
}


@pytest.mark.slow
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_samples_follow_the_distribution_of_the_loss(make):
    """Of many draws each token comes as often as its probability at the temperature; a forbidden one never does. The
    logits are the loss's, whether the class applies scale and soft cap or not, and the model's own forward stays.
    """
    torch.manual_seed(0)
    model = make().eval()
    prompt_T, temperature, forbidden, draws = torch.tensor(PROMPTS[0]), 2.0, 7, 1500
    zeros_BT = torch.zeros_like(prompt_T)[None]
    arguments = token_arguments(model, ModelInputs(prompt_T[None], zeros_BT, zeros_BT, zeros_BT.bool(), {}))
    with torch.no_grad():
        own_TV = model(**arguments).logits[0]
        logits_V = output_head(model).logits(model.model(**arguments).last_hidden_state[0, -1:])[0]
    logits_V[forbidden] = -torch.inf
    prompts = [Prompt(prompt_T, torch.zeros(len(prompt_T), dtype=torch.bool))] * draws
    seeds = range(draws)
    found = generate_answers(model, prompts, {}, [END], PAD, 1, temperature, never=[forbidden], seeds=seeds)
    noise = [torch.empty(len(logits_V)).exponential_(generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    drawn = torch.stack([logits_V / temperature - each_V.log() for each_V in noise]).argmax(-1)
    assert (drawn == torch.cat(found)).float().mean() > 0.995  # up to rounding
    counts_V = torch.cat(found).bincount(minlength=len(logits_V))
    p_V = (logits_V / temperature).softmax(-1)
    noise_V = (p_V * (1 - p_V) / draws).sqrt()
    assert counts_V[forbidden] == 0 and counts_V.sum() == draws and p_V.max() < 0.5
    assert ((counts_V / draws - p_V).abs() <= 5 * noise_V + 1 / draws).all()
    with torch.no_grad():
        assert torch.equal(model(**arguments).logits[0], own_TV)
