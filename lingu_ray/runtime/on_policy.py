"""On-policy distillation: the student answers some of the rows itself, and the teacher judges those answers.

A student that only ever sees the corpus's answers is never corrected on its own mistakes (Agarwal et al. 2024, GKD).
The sampled answer takes the place of the row's last one. It has no cross-entropy, for it is nobody's word to learn.
"""

from __future__ import annotations

import random
from dataclasses import replace

import torch

from lingu_ray.config import Config
from lingu_ray.corpus.encode import Encoder, Sample, join_vision
from lingu_ray.distill.generate import Prompt, generate_answers
from lingu_ray.distill.student import Student

_AT_ONCE = 16
"""Answers generated in one batch."""


class OnPolicy:
    """Replaces answers by the student's own, on a share of the rows that are distilled."""

    def __init__(self, config: Config, student: Student, encoder: Encoder):
        self.config, self.student, self.encoder = config, student, encoder
        self.distilled = config.distilled_sources()

    def answer(self, samples: list[Sample], step: int) -> list[Sample]:
        """The step's samples, the chosen ones with a sampled answer. Which are chosen follows from seed and row."""
        chosen = [i for i, sample in enumerate(samples) if self._chooses(sample, step)]
        answered = list(samples)
        for begin in range(0, len(chosen), _AT_ONCE):
            part = chosen[begin : begin + _AT_ONCE]
            for i, sample in zip(part, self._sample([samples[i] for i in part]), strict=True):
                answered[i] = sample
        return answered

    def _chooses(self, sample: Sample, step: int) -> bool:
        draw = random.Random(f"{self.config.seed}/{step}/{sample.position}").random()
        return sample.source in self.distilled and draw < self.config.distill.on_policy

    def _sample(self, samples: list[Sample]) -> list[Sample]:
        begins = [_last_answer(sample) for sample in samples]
        prompts = [Prompt(s.input_ids_T[:begin], s.visual_T[:begin]) for s, begin in zip(samples, begins, strict=True)]
        answers = generate_answers(
            self.student.model,
            prompts,
            join_vision([sample.vision for sample in samples if sample.vision]),
            ends=[self.encoder.end_of_turn_id],
            never=[self.encoder.image_token_id],  # a placeholder without image is no text
            pad_id=self.encoder.pad_id,
            max_new_tokens=self.config.distill.sampled_tokens,
            temperature=self.config.distill.sampling_temperature,
        )
        return [
            _with_answer(sample, begin, answer_T[: self.config.corpus.max_length - begin])
            for sample, begin, answer_T in zip(samples, begins, answers, strict=True)
        ]


def _last_answer(sample: Sample) -> int:
    """Where the last answer begins."""
    prompt_T = (~sample.supervised_T).nonzero().flatten()
    answer_T = sample.supervised_T.nonzero().flatten()
    return int(prompt_T[prompt_T < answer_T[-1]][-1]) + 1


def _with_answer(sample: Sample, begin: int, answer_T: torch.Tensor) -> Sample:
    """The sample with another last answer, which alone is supervised."""
    supervised_T = torch.arange(begin + len(answer_T)) >= begin
    return replace(
        sample,
        input_ids_T=torch.cat([sample.input_ids_T[:begin], answer_T]),
        supervised_T=supervised_T,
        visual_T=torch.cat([sample.visual_T[:begin], torch.zeros_like(answer_T, dtype=torch.bool)]),
        sampled=True,
    )
