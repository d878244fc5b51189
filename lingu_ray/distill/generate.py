"""Answers of a model to prompts with images, in one left-padded batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from lingu_ray.distill.inputs import ModelInputs, send_arguments, token_arguments


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

    `model`: an image-text-to-text model; it is left in the mode (training or not) that it was in.
    `vision`: vision tensors of all prompts, images in order. `never`: ids that no answer may contain.
    `stopping`: further criteria that end an answer; they see the left-padded prompts with the answers so far.
    `streamer`: receives the prompt, then each token as it is generated; for a single prompt.
    `seeds`: of sampling, one for each prompt: its draws are the same in any batch, and so, up to rounding, is its
    answer; empty: from PyTorch's global generator.
    What the checkpoint's generation settings say (beams, repetition penalty, top-p, …) has no effect: sampled answers
    follow the model's own distribution, greedy ones its likeliest tokens, on every engine alike.
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
        sampling.append(_Sampling(temperature, [torch.Generator(model.device).manual_seed(seed) for seed in seeds]))
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
    """Makes the likeliest token a sampled one, by Gumbel noise on the logits of each row from its own generator."""

    def __init__(self, temperature: float, generators: list[torch.Generator]) -> None:
        self.temperature, self.generators = temperature, generators

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # names of Transformers: BT and BV
        noise_BV = torch.empty_like(scores)
        for row_V, generator in zip(noise_BV, self.generators, strict=True):
            row_V.exponential_(generator=generator)
        return scores / self.temperature - noise_BV.log()


@contextmanager
def generating(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """The model in eval mode, with these generation settings in place of its own, which `generate` would mix in."""
    training, own = model.training, model.generation_config
    model.eval()  # also switches gradient checkpointing off, which would take the cache away
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = own
        model.train(training)


def _up_to_end(answer_T: Tensor, ends: list[int]) -> Tensor:
    found = torch.isin(answer_T, answer_T.new_tensor(ends)).nonzero()
    return answer_T[: int(found[0]) + 1] if len(found) else answer_T
