"""KV-shared distillation written down a second time, slowly: what the fast path is held against.

One sample, one position, one token at a time, in float64, from the method's equations alone; no code is shared with the
library. What student and teacher compute comes from a `Pair` (`reference_pairs.py`). Gradients come from autograd.

Shape suffixes: V vocabulary of the student, U vocabulary of the teacher, B buckets of a divergence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

Logits = dict[int, Tensor]
"""By position: logits of the token after it."""


@dataclass(frozen=True)
class Example:
    """One sample. `vision` is what `get_image_features` takes, empty for text.

    `ce_weight` is c_i and `kd_weight` d_i of the loss. `sampled_from`: from there on the answer is a model's own,
    which nothing vouches for, so its tokens have KD but no CE.
    """

    ids: list[int]
    supervised: list[bool]
    visual: list[bool]
    distilled: bool
    ce_weight: float = 1.0
    kd_weight: float = 1.0
    sampled_from: int | None = None
    vision: dict[str, Tensor] = field(default_factory=dict)

    @property
    def answers(self) -> list[int]:
        """Positions that predict an answer token: those before a supervised one."""
        return [p for p in range(len(self.ids) - 1) if self.supervised[p + 1]]


@dataclass(frozen=True)
class Objective:
    """What is minimized.

    `context`: shared_kv or prompt_text. `scope`: full or visual. `earlier_turns`:
    student or teacher. `divergence`: a name of `DIVERGENCES`. `top_k` None:
    all ids. `kd_normalizer`: supervised or distilled. `ce_on_distilled`: factor on the CE of distilled examples.
    """

    context: str = "shared_kv"
    scope: str = "full"
    earlier_turns: str = "student"
    divergence: str = "forward_kl"
    beta: float = 0.5
    top_k: int | None = None
    temperature: float = 1.0
    kd_normalizer: str = "supervised"
    ce_on_distilled: float = 1.0
    w_ce: float = 1.0
    w_kd: float = 1.0


@dataclass(frozen=True)
class Result:
    """The loss of an optimizer step (nats) and its terms a token, unweighted, in order of sample and position."""

    loss: Tensor
    ce: list[Tensor]
    kd: list[Tensor]


class Pair(Protocol):
    """A student and its teacher, one sample at a time."""

    @property
    def teacher_vocabulary(self) -> int:
        """How many ids the teacher knows, from 0."""
        ...

    def student(self, example: Example) -> tuple[Logits, Any]:
        """Logits [V] at every position, and the memory: each layer's keys and values of every position."""
        ...

    def teacher(self, example: Example, memory: Any, queries: list[int]) -> Logits:
        """Logits [U] at the queries, where all other positions' keys and values are the memory's; no gradient."""
        ...

    def teacher_alone(self, ids: list[int]) -> Logits:
        """Logits [U] of a text that the teacher reads by itself; no gradient."""
        ...


def teacher_queries(example: Example, scope: str, teacher_vocabulary: int) -> list[int]:
    """Positions that the teacher computes; all others are donated.

    Full scope: those that predict an answer token. Visual scope: all but the visual ones. A token that the teacher has
    no embedding for cannot be its query, so it is donated in both.
    """
    candidates = example.answers if scope == "full" else [p for p in range(len(example.ids)) if not example.visual[p]]
    return [p for p in candidates if example.ids[p] < teacher_vocabulary and not example.visual[p]]


def answers_of(example: Example) -> list[list[int]]:
    """The positions that predict each answer's tokens: runs without a gap."""
    runs: list[list[int]] = []
    for position in example.answers:
        if runs and runs[-1][-1] == position - 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    return runs


def teacher_logits(pair: Pair, example: Example, memory: Any, objective: Objective) -> Logits:
    """What the teacher says at its queries, continuing from the student's memory.

    Under full scope, where earlier turns are the student's, each answer is asked about by itself.
    """
    if not example.distilled:
        return {}
    if objective.context == "prompt_text":
        return read_text_alone(pair, example)
    queries = teacher_queries(example, objective.scope, pair.teacher_vocabulary)
    if objective.scope == "visual" or objective.earlier_turns == "teacher":
        return pair.teacher(example, memory, queries)
    logits: Logits = {}
    for answer in answers_of(example):
        logits |= pair.teacher(example, memory, [p for p in queries if p in answer])
    return logits


def read_text_alone(pair: Pair, example: Example) -> Logits:
    """What the teacher says where it reads the text alone, as one that never shared anything."""
    read = [p for p, i in enumerate(example.ids) if i < pair.teacher_vocabulary and not example.visual[p]]
    logits = pair.teacher_alone([example.ids[p] for p in read])
    return {p: logits[place] for place, p in enumerate(read)}


def forward_kl(teacher_B: Tensor, student_B: Tensor) -> Tensor:
    """KL(T‖S) of two distributions, nats."""
    return (teacher_B * (teacher_B.log() - student_B.log())).sum()


def reverse_kl(teacher_B: Tensor, student_B: Tensor) -> Tensor:
    """KL(S‖T), nats."""
    return forward_kl(student_B, teacher_B)


def jsd(teacher_B: Tensor, student_B: Tensor, beta: float) -> Tensor:
    """β KL(T‖M) + (1 − β) KL(S‖M), M = βT + (1 − β)S, nats."""
    mixture_B = beta * teacher_B + (1 - beta) * student_B
    return beta * forward_kl(teacher_B, mixture_B) + (1 - beta) * forward_kl(student_B, mixture_B)


def tv(teacher_B: Tensor, student_B: Tensor) -> Tensor:
    """Total variation ½ Σ |T − S|, between 0 and 1."""
    return (teacher_B - student_B).abs().sum() / 2


DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "tv": tv,
}


def buckets(probability_U: Tensor, ids: list[int]) -> Tensor:
    """Probabilities of `ids`, then of all other ids together."""
    rest = [i for i in range(len(probability_U)) if i not in ids]
    return torch.cat([probability_U[ids], probability_U[rest].sum()[None]])


def token_kd(teacher_U: Tensor, student_V: Tensor, objective: Objective) -> Tensor:
    """Divergence of one token from the logits of both, without τ²: over the shared ids, renormalized."""
    shared = min(len(teacher_U), len(student_V))
    t_B = torch.softmax(teacher_U[:shared] / objective.temperature, 0)
    s_B = torch.softmax(student_V[:shared] / objective.temperature, 0)
    if objective.top_k is not None:
        ids = t_B.argsort(descending=True)[: objective.top_k].tolist()
        t_B, s_B = buckets(t_B, ids), buckets(s_B, ids)
    divergence = DIVERGENCES[objective.divergence]
    if objective.divergence == "jsd":
        divergence = partial(divergence, beta=objective.beta)
    return divergence(t_B, s_B)


def distillation_loss(
    examples: list[Example], students: list[Logits], teachers: list[Logits], objective: Objective
) -> Result:
    """L = w_ce · Σ c_i CE_i / N_ce + w_kd · τ² · Σ d_i KD_i / N_kd over all examples of an optimizer step.

    N_ce are the tokens with a CE; N_kd all supervised tokens, or those with a KD term. `students`, `teachers`: the
    logits of each example.
    """
    ce, kd = [], []
    ce_sum, kd_sum = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    labeled = 0
    for example, student, teacher in zip(examples, students, teachers, strict=True):
        ce_weight = example.ce_weight * (objective.ce_on_distilled if example.distilled else 1.0)
        for position in example.answers:
            student_V = student[position]
            ce.append(torch.logsumexp(student_V, 0) - student_V[example.ids[position + 1]])
            if example.sampled_from is None or position + 1 < example.sampled_from:
                ce_sum = ce_sum + ce_weight * ce[-1]
                labeled += 1
            if position in teacher:
                kd.append(token_kd(teacher[position], student_V, objective))
                kd_sum = kd_sum + example.kd_weight * kd[-1]
    ce_term = objective.w_ce * ce_sum / max(labeled, 1)
    n_kd = len(ce) if objective.kd_normalizer == "supervised" else len(kd)
    kd_term = objective.w_kd * objective.temperature**2 * kd_sum / max(n_kd, 1)
    return Result(ce_term + kd_term, ce, kd)


def gradients(vlm: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Gradient of the loss in every trained parameter; zeros where it has no part in the loss. The graph is kept."""
    named = [(name, parameter) for name, parameter in vlm.named_parameters() if parameter.requires_grad]
    names, parameters = zip(*named, strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for name, parameter, gradient in zip(names, parameters, found, strict=True)
    }
