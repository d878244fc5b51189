"""Answers of a model to prompts with images, in one left-padded batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from lingu_ray.distill.head import scale_, scaling
from lingu_ray.distill.inputs import ModelInputs, send_arguments, token_arguments

_PRODUCT = 100.0  # a logit before scale and soft cap, so large that these show
_LEFT_OUT = WeakKeyDictionary[nn.Module, bool]()
"""Models that have been asked whether their class leaves out scale and soft cap."""


@dataclass(frozen=True)
class Prompt:
    """Token ids up to an answer, and which of them are visual. The batch's vision tensors are passed separately."""

    input_ids_T: Tensor
    visual_T: Tensor


@torch.no_grad()
def generate_answers(
    model: Any,
    prompts: list[Prompt],
    vision: dict[str, Tensor],
    ends: list[int],
    pad_id: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    never: list[int] | None = None,
    stopping: StoppingCriteriaList | None = None,
    streamer: BaseStreamer | None = None,
    seeds: Sequence[int] = (),
) -> list[Tensor]:
    """Token ids of each answer, up to and with its first token of `ends`; greedy at `temperature` 0, else sampled.

    `model`: an image-text-to-text model; each of its modules is left in the mode (training or not) that it was in.
    `vision`: vision tensors of all prompts, images in order. `never`: ids that no answer may contain.
    `stopping`: further criteria that end an answer; they see the left-padded prompts with the answers so far.
    `streamer`: receives the prompt, then each token as it is generated; for a single prompt.
    `seeds`: of sampling, one for each prompt: its draws are the same in any batch, and so, up to rounding, is its
    answer; empty: from PyTorch's global generator.
    What the checkpoint's generation settings say (beams, repetition penalty, top-p, …) has no effect: sampled answers
    follow the model's own distribution, greedy ones its likeliest tokens, on every engine alike. The distribution is
    that of the loss, with scale and soft cap of the decoder also where the model's class leaves them out (`head.py`).
    """
    longest = max(len(prompt.input_ids_T) for prompt in prompts)

    def left_padded(tensors: list[Tensor], padding: int) -> Tensor:
        padded_BT = tensors[0].new_full((len(tensors), longest), padding)
        for row, tensor_T in enumerate(tensors):
            padded_BT[row, longest - len(tensor_T) :] = tensor_T
        return padded_BT

    sample_BT = left_padded([torch.full_like(p.input_ids_T, i) for i, p in enumerate(prompts)], -1)
    visual_BT = left_padded([p.visual_T for p in prompts], 0)
    ids_BT = left_padded([p.input_ids_T for p in prompts], pad_id)
    inputs = ModelInputs(ids_BT, sample_BT, torch.zeros_like(visual_BT), visual_BT, vision)
    mask_BT = (sample_BT >= 0).long()
    arguments = send_arguments(token_arguments(model, inputs) | {"attention_mask": mask_BT}, model.device)
    sampling = LogitsProcessorList()
    if temperature:
        seeds = seeds or torch.randint(2**62, (len(prompts),)).tolist()
        generators = [torch.Generator(model.device).manual_seed(seed) for seed in seeds]
        sampling.append(_Sampling(temperature, generators, *_left_out(model)))
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends,
        pad_token_id=pad_id,
        suppress_tokens=never,
    )
    with generating(model, settings):
        output_BT: Any = model.generate(
            **arguments, logits_processor=sampling, stopping_criteria=stopping, streamer=streamer
        )
    return [_up_to_end(answer_T, ends) for answer_T in output_BT[:, longest:].cpu()]


class _Sampling(LogitsProcessor):
    """Makes the likeliest token a sampled one, by Gumbel noise on the logits of each row from its own generator.

    `scale`, `softcap`: of the logits, which are still to be applied.
    """

    def __init__(
        self, temperature: float, generators: list[torch.Generator], scale: float, softcap: float | None
    ) -> None:
        self.temperature, self.generators, self.scale, self.softcap = temperature, generators, scale, softcap

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # names of Transformers: BT and BV
        forbidden_BV = scores.isneginf()  # a soft cap would allow them
        scores = scale_(scores, self.scale, self.softcap).masked_fill(forbidden_BV, -torch.inf)
        noise_BV = torch.empty_like(scores)
        for row_V, generator in zip(noise_BV, self.generators, strict=True):
            row_V.exponential_(generator=generator)
        return scores / self.temperature - noise_BV.log()


def _left_out(model: Any) -> tuple[float, float | None]:
    """Scale and soft cap that the model's class leaves out of its logits; 1 and None where there is nothing to add."""
    found = scaling(model.config.get_text_config(decoder=True))
    if found == (1.0, None):
        return found
    if model not in _LEFT_OUT:
        _LEFT_OUT[model] = _gives_products(model)
    return found if _LEFT_OUT[model] else (1.0, None)


def _gives_products(model: Any) -> bool:
    """Whether the model's logits are what its head multiplies, seen where that is replaced."""
    one_BT = torch.zeros(1, 1, dtype=torch.long)
    inputs = ModelInputs(one_BT, one_BT, one_BT, one_BT.bool(), {})
    replaced = model.get_output_embeddings().register_forward_hook(lambda *call: torch.full_like(call[2], _PRODUCT))
    try:
        logits_BTV = model(**send_arguments(token_arguments(model, inputs), model.device), use_cache=False).logits
    finally:
        replaced.remove()
    return bool((logits_BTV == _PRODUCT).all())


@contextmanager
def generating(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """The model in eval mode, with these generation settings in place of its own, which `generate` would mix in."""
    training, own = [module for module in model.modules() if module.training], model.generation_config
    model.eval()  # also switches gradient checkpointing off, which would take the cache away
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own
        for module in training:
            module.training = True


def _up_to_end(answer_T: Tensor, ends: list[int]) -> Tensor:
    found = torch.isin(answer_T, answer_T.new_tensor(ends)).nonzero()
    return answer_T[: int(found[0]) + 1] if len(found) else answer_T
