"""An optimizer step by the library and by the reference, and their comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_method import (
    Example,
    Logits,
    Objective,
    Pair,
    Result,
    distillation_loss,
    gradients,
    teacher_logits,
)
from tinyrun import settings
from torch import Tensor

import lingu_ray.distill.loss as loss
import lingu_ray.distill.step as step
from lingu_ray.config import Config
from lingu_ray.corpus.batch import collate
from lingu_ray.corpus.encode import Sample
from lingu_ray.distill.donation import Donation
from lingu_ray.distill.student import Student
from lingu_ray.distill.teacher import Teacher
from lingu_ray.runtime.training.step import MicroBatches

WEIGHTS = {  # by source; text is distilled under the policy `selective`
    "text": {"ce_weight": 0.7, "kd_weight": 1.2},
    "pictures": {"ce_weight": 1.5, "kd_weight": 1.0},
}
Step = list[list[Sample]]
"""Samples of an optimizer step, by micro-batch."""


@contextmanager
def float64_throughout() -> Iterator[None]:
    """Casts to float32, which Transformers and the loss make for stability, become casts to float64.

    What is compared is therefore the method, to 1e-9, and not the rounding of float32.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch, "float", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        yield
    torch.set_default_dtype(torch.float32)


class Comparison:
    """A pair of models and the samples of a step; what the reference reads is computed once for all objectives."""

    def __init__(self, vlm: Any, lm: Any, reference: Callable[[Any, Any], Pair], groups: Step) -> None:
        self.vlm, self.groups = vlm, groups
        self.pair = reference(vlm, lm)
        self.examples = [example(sample) for group in groups for sample in group]
        self.teachers: dict[tuple[str, str, str], list[Logits]] = {}
        self.references: dict[Objective, tuple[Result, dict[str, Tensor]]] = {}
        self.fast_vlm, fast_lm = deepcopy((vlm, lm))
        self.student, self.teacher = Student(self.fast_vlm), Teacher(fast_lm)

    @cached_property
    def students(self) -> list[tuple[Logits, Any]]:
        """Logits and memory of each sample, with their graph."""
        return [self.pair.student(one) for one in self.examples]

    def reference(self, objective: Objective) -> tuple[Result, dict[str, Tensor]]:
        """Result and gradients by the reference, computed once for both layouts of the micro-batches."""
        if objective in self.references:
            return self.references[objective]
        asked = (objective.context, objective.scope, objective.earlier_turns)
        if asked not in self.teachers:
            read = zip(self.examples, self.students, strict=True)
            self.teachers[asked] = [teacher_logits(self.pair, one, memory, objective) for one, (_, memory) in read]
        students = [logits for logits, _ in self.students]
        result = distillation_loss(self.examples, students, self.teachers[asked], objective)
        self.references[objective] = result, gradients(self.vlm, result.loss)
        return self.references[objective]

    def plans(self, objective: Objective) -> list[Donation | None]:
        """What the library donates, by micro-batch."""
        micro_batches = self._micro_batches(objective)
        return [micro_batches.plan(collate(group, 2)) for group in self.groups]

    def fast(self, objective: Objective, packing: bool, **calls: int) -> tuple[Result, dict[str, Tensor]]:
        """Result and gradients by the library; `calls`: settings of the teacher's calls."""
        micro_batches = self._micro_batches(objective, **calls)
        batches = [collate(group, 2, packing) for group in self.groups]
        plans = [micro_batches.plan(batch) for batch in batches]
        terms: list[loss.LossTerms] = []

        def record(*inputs: Any) -> loss.LossTerms:
            terms.append(loss.ce_kd_loss(*inputs))
            return terms[-1]

        self.fast_vlm.zero_grad(set_to_none=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(step, "ce_kd_loss", record)
            patch.setattr(loss, "_CHUNK_ELEMENTS", 5 * self.student.output_head.vocabulary)  # several chunks of tokens
            sums = micro_batches.run(batches, plans, micro_batches.weights(0.0, batches, plans))
        result = Result(
            loss=torch.tensor(sums.loss),
            ce=[value for part in terms for value in part.ce_N],
            kd=[value for part in terms for value in part.kd_M],
        )
        named = [(name, p) for name, p in self.fast_vlm.named_parameters() if p.requires_grad]
        return result, {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in named}

    def _micro_batches(self, objective: Objective, **calls: int) -> MicroBatches:
        distill = asdict(objective)
        teacher = calls | {name: distill.pop(name) for name in ("context", "scope", "earlier_turns")}
        tree = settings(Path(), Path(), teacher=teacher, distill=distill)
        for source in tree["corpus"]["sources"]:
            source |= WEIGHTS[source["name"]]
        return MicroBatches(Config.model_validate(tree), self.student, self.teacher, torch.device("cpu"))

    def agree(self, objective: Objective, packing: bool = False, **calls: int) -> None:
        """Both have to agree on the loss, on every token and on every gradient; `calls`: as of `fast`."""
        expected, expected_gradients = self.reference(objective)
        found, found_gradients = self.fast(objective, packing, **calls)
        assert min(expected.kd, default=1) > 1e-4, "the teacher has to disagree, or the comparison shows nothing"
        close = {"rtol": 1e-9, "atol": 1e-12}
        torch.testing.assert_close(found.loss, expected.loss.detach(), **close)
        torch.testing.assert_close(found.ce, [value.detach() for value in expected.ce], **close)
        torch.testing.assert_close(found.kd, [value.detach() for value in expected.kd], **close)
        assert found_gradients.keys() == expected_gradients.keys()
        for name, gradient in expected_gradients.items():
            named = partial("{}: {}".format, name)
            torch.testing.assert_close(found_gradients[name], gradient, **close, msg=named)


def example(sample: Sample, weights: dict[str, float] | None = None) -> Example:
    """The sample in the reference's terms; `weights`: of its source, None: those of `WEIGHTS`."""
    return Example(
        ids=sample.input_ids_T.tolist(),
        supervised=sample.supervised_T.tolist(),
        visual=sample.visual_T.tolist(),
        distilled=sample.source == "text",
        sampled_from=sample.sampled_from,
        vision=sample.vision,
        **(WEIGHTS[sample.source] if weights is None else weights),
    )
