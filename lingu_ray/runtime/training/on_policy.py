"""On-policy distillation: the student answers some of the rows itself, and the teacher judges those answers.

A student that only ever sees the corpus's answers is never corrected on its own mistakes (Agarwal et al. 2024, GKD).
The sampled answer replaces the row's last one. It has a KD term and no cross-entropy, since it is no reference to
learn; earlier answers of the row are the corpus's and keep both.
"""

from __future__ import annotations

import random
from dataclasses import replace

import torch

from lingu_ray.config import Config
from lingu_ray.corpus.batch import join_vision
from lingu_ray.corpus.encode import Encoder, Sample
from lingu_ray.distill.generate import Prompt, generate_answers
from lingu_ray.distill.student import Student

_AT_ONCE = 16
"""Answers generated in one batch."""


class OnPolicy:
    """Replaces answers by the student's own, on a share of the distilled rows."""

    def __init__(self, config: Config, student: Student, encoder: Encoder):
        self.config, self.student, self.encoder = config, student, encoder
        self.distilled = config.distilled_sources()

    def answer(self, samples: list[Sample], step: int) -> list[Sample]:
        """The step's samples, the chosen ones with a sampled answer.

        Seed, step and row decide which, and what is drawn for them, whatever worker has the row.
        """
        draws = [random.Random(f"{self.config.seed}/{step}/{sample.position}") for sample in samples]
        chosen = [i for i, draw in enumerate(draws) if self._chooses(samples[i], draw.random())]
        answered = list(samples)
        for start in range(0, len(chosen), _AT_ONCE):
            part = chosen[start : start + _AT_ONCE]
            seeds = [draws[i].getrandbits(63) for i in part]
            for i, sample in zip(part, self._sample([samples[i] for i in part], seeds), strict=True):
                answered[i] = sample
        return answered

    def _chooses(self, sample: Sample, draw: float) -> bool:
        return sample.source in self.distilled and draw < self.config.distill.on_policy

    def _sample(self, samples: list[Sample], seeds: list[int]) -> list[Sample]:
        starts = [_last_answer(sample) for sample in samples]
        prompts = [Prompt(s.input_ids_T[:start], s.visual_T[:start]) for s, start in zip(samples, starts, strict=True)]
        answers = generate_answers(
            self.student.model,
            prompts,
            join_vision([sample.vision for sample in samples if sample.vision]),
            ends=[self.encoder.end_of_turn_id],
            never=[self.encoder.image_token_id],  # a placeholder without an image is no text
            pad_id=self.encoder.pad_id,
            max_new_tokens=self.config.distill.sampled_tokens,
            temperature=self.config.distill.sampling_temperature,
            seeds=seeds,
        )
        return [
            _with_answer(sample, start, answer_T[: self.config.corpus.max_length - start])
            for sample, start, answer_T in zip(samples, starts, answers, strict=True)
        ]


def _last_answer(sample: Sample) -> int:
    """Index of the last answer's first token."""
    prompt_T = (~sample.supervised_T).nonzero().flatten()
    answer_T = sample.supervised_T.nonzero().flatten()
    return int(prompt_T[prompt_T < answer_T[-1]][-1]) + 1


def _with_answer(sample: Sample, start: int, answer_T: torch.Tensor) -> Sample:
    """The sample with another last answer."""
    sampled_T = torch.ones_like(answer_T, dtype=torch.bool)
    return replace(
        sample,
        input_ids_T=torch.cat([sample.input_ids_T[:start], answer_T]),
        supervised_T=torch.cat([sample.supervised_T[:start], sampled_T]),
        visual_T=torch.cat([sample.visual_T[:start], ~sampled_T]),
        sampled_from=start,
    )
