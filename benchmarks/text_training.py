"""Plain fine-tuning on random texts, for benchmarks of a training step that need no teacher."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from benchmarks.one_step import add_gradients, run_config
from benchmarks.pairs import VOCABULARY, llama_pair
from benchmarks.report import Row
from lingu_ray.config import TrainConfig
from lingu_ray.corpus.batch import MicroBatch, make_micro_batches
from lingu_ray.corpus.encode import Sample
from lingu_ray.distill.student import Student
from lingu_ray.passes import PASS_TOKENS
from lingu_ray.runtime.training.distributed import clip_gradients, sum_gradients, zero_gradients
from lingu_ray.runtime.training.optimizer import make_optimizer, trained_parameters
from lingu_ray.runtime.training.prepare import prepare
from lingu_ray.runtime.training.step import MicroBatches


class TextTraining:
    """Plain fine-tuning of a student with random weights; `settings` give `layers` and `hidden` of its decoder."""

    def __init__(self, settings: Row, precision: str):
        torch.manual_seed(0)
        train, device = TrainConfig(), torch.device("cpu")
        self.student = Student(llama_pair(settings["layers"], settings["hidden"], image_tokens=16).make_student())
        prepare(self.student, train, device, seed=0)
        self.optimizer = make_optimizer(self.student, train)
        self.parameters = trained_parameters(self.optimizer)
        config = run_config("unused", "in_process", 0, precision)
        self._micro_batches = MicroBatches(config, self.student, None, device)

    def backward(self, batches: list[MicroBatch]) -> None:
        """Add a step's gradients to those that are there."""
        add_gradients(self._micro_batches, batches)

    def step(self, batches: list[MicroBatch]) -> None:
        """One optimizer step, as training does it."""
        zero_gradients(self.parameters)
        self.backward(batches)
        sum_gradients(self.parameters)
        clip_gradients(self.parameters, 1.0)
        self.optimizer.step()


def text_batches(lengths: Iterable[int], most: int, first: int = 0) -> list[MicroBatch]:
    """Micro-batches of at most `most` tokens, of padded texts of these lengths; `first`: position of the first."""
    samples = [_text(first + number, tokens) for number, tokens in enumerate(lengths)]
    return make_micro_batches(samples, most, 0, False, PASS_TOKENS)


def _text(position: int, tokens: int) -> Sample:
    """A text of random ids; the second half is its answer."""
    ids_T = torch.randint(VOCABULARY, (tokens,), generator=torch.Generator().manual_seed(position))
    supervised_T = torch.arange(tokens) >= tokens // 2
    return Sample("images", position, ids_T, supervised_T, torch.zeros_like(supervised_T), {})
