"""KV-shared distillation written down a second time, slowly: what the fast path is held against.

One sample, one position, one layer, one head at a time, in float64, from the method's equations alone; no code is
shared with the library. The decoder is the Llama of the textbooks, run token by token over a memory of keys and
values: the student fills an empty memory, the teacher continues from one that the student has filled in part.
Transformers' model holds the weights and maps images to features, and does nothing else. Gradients come from autograd.

Shape suffixes: D hidden, E head dimension, F inner width of the MLP, K keys seen, V vocabulary of the student, U
vocabulary of the teacher, B buckets of a divergence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

Memory = list[dict[int, list[tuple[Tensor, Tensor]]]]
"""By layer and position: key (after RoPE) and value [E] of each KV head."""


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


class Decoder:
    """Llama by hand. `prefix` is where its parameters stand in `model`; an untied head is `lm_head.weight`."""

    def __init__(self, model: torch.nn.Module, prefix: str, config: Any) -> None:
        parameters = dict(model.named_parameters())
        self.embedding_VD = parameters[prefix + "embed_tokens.weight"]
        self.head_VD = parameters.get("lm_head.weight", self.embedding_VD)
        self.final_norm_D = parameters[prefix + "norm.weight"]
        self.layers = [
            {
                name.removeprefix(start).removesuffix(".weight"): tensor
                for name, tensor in parameters.items()
                if name.startswith(start)
            }
            for start in (f"{prefix}layers.{index}." for index in range(config.num_hidden_layers))
        ]
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.eps = config.head_dim, config.rms_norm_eps
        self.theta = config.rope_parameters["rope_theta"]

    def empty_memory(self) -> Memory:
        """Nothing read yet."""
        return [{} for _ in self.layers]

    def read(self, inputs: dict[int, Tensor], memory: Memory) -> dict[int, Tensor]:
        """Final hidden states [D] by position, of the input embeddings [D] by position.

        Each position attends to what the memory holds at positions up to its own, and adds its own key and value.
        """
        hidden = {}
        for position in sorted(inputs):
            x_D = inputs[position]
            for weights, cells in zip(self.layers, memory, strict=True):
                y_D = self._norm(x_D, weights["input_layernorm"])
                x_D = x_D + self._attend(y_D, position, weights, cells)
                y_D = self._norm(x_D, weights["post_attention_layernorm"])
                x_D = x_D + self._mlp(y_D, weights)
            hidden[position] = self._norm(x_D, self.final_norm_D)
        return hidden

    def _attend(self, x_D: Tensor, position: int, weights: dict[str, Tensor], cells: dict[int, Any]) -> Tensor:
        """Grouped-query attention: `heads / kv_heads` consecutive query heads read one KV head."""
        queries = [self._rotate(q_E, position) for q_E in self._split(weights["self_attn.q_proj"] @ x_D)]
        keys = [self._rotate(k_E, position) for k_E in self._split(weights["self_attn.k_proj"] @ x_D)]
        values = self._split(weights["self_attn.v_proj"] @ x_D)
        cells[position] = list(zip(keys, values, strict=True))
        seen = [cells[p] for p in sorted(cells) if p <= position]
        outputs = []
        for head, q_E in enumerate(queries):
            group = head // (self.heads // self.kv_heads)
            score_K = torch.stack([q_E @ cell[group][0] for cell in seen]) / math.sqrt(self.head_dim)
            weight_K = torch.exp(score_K - score_K.max())
            weight_K = weight_K / weight_K.sum()
            outputs.append(weight_K @ torch.stack([cell[group][1] for cell in seen]))
        return weights["self_attn.o_proj"] @ torch.cat(outputs)

    def _split(self, x: Tensor) -> list[Tensor]:
        return [x[start : start + self.head_dim] for start in range(0, len(x), self.head_dim)]

    def _rotate(self, x_E: Tensor, position: int) -> Tensor:
        """RoPE: dimensions i and i + E/2 are a plane, turned by position · θ^(−2i/E)."""
        half = self.head_dim // 2
        angle = torch.tensor([position * self.theta ** (-2 * i / self.head_dim) for i in range(half)]).double()
        first, second = x_E[:half], x_E[half:]
        return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()])

    def _norm(self, x_D: Tensor, weight_D: Tensor) -> Tensor:
        return x_D / torch.sqrt((x_D * x_D).mean() + self.eps) * weight_D

    @staticmethod
    def _mlp(x_D: Tensor, weights: dict[str, Tensor]) -> Tensor:
        gate_F = weights["mlp.gate_proj"] @ x_D
        return weights["mlp.down_proj"] @ (gate_F / (1 + torch.exp(-gate_F)) * (weights["mlp.up_proj"] @ x_D))


def student_inputs(vlm: Any, decoder: Decoder, example: Example) -> dict[int, Tensor]:
    """What the student reads at each position: its token's embedding, or the next image feature."""
    features = iter(())
    if example.vision:
        vision = {name: x.double() if x.is_floating_point() else x for name, x in example.vision.items()}
        found = vlm.get_image_features(**vision).pooler_output
        features = iter([feature_D for image in found for feature_D in image])
    inputs = {
        position: next(features) if example.visual[position] else decoder.embedding_VD[token]
        for position, token in enumerate(example.ids)
    }
    assert next(features, None) is None, "more image features than visual positions"
    return inputs


def teacher_queries(example: Example, scope: str, teacher_vocabulary: int) -> list[int]:
    """Positions that the teacher computes; all others are donated.

    Full scope: those that predict an answer token. Visual scope: all but the visual ones. A token that the teacher has
    no embedding for cannot be its query, so it is donated in both.
    """
    candidates = example.answers if scope == "full" else [p for p in range(len(example.ids)) if not example.visual[p]]
    return [p for p in candidates if example.ids[p] < teacher_vocabulary and not example.visual[p]]


def teacher_hidden(
    teacher: Decoder, example: Example, student_memory: Memory, objective: Objective
) -> dict[int, Tensor]:
    """The teacher's final hidden states [D] at its queries, continuing from the student's detached memory.

    Under full scope, where earlier turns are the student's, each answer is asked about by itself.
    """
    queries = teacher_queries(example, objective.scope, len(teacher.embedding_VD))
    if objective.scope == "visual" or objective.earlier_turns == "teacher":
        return continued(teacher, example, student_memory, queries)
    hidden: dict[int, Tensor] = {}
    for answer in answers_of(example):
        hidden |= continued(teacher, example, student_memory, [p for p in queries if p in answer])
    return hidden


def answers_of(example: Example) -> list[list[int]]:
    """The positions that predict each answer's tokens: runs without a gap."""
    runs: list[list[int]] = []
    for position in example.answers:
        if runs and runs[-1][-1] == position - 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    return runs


def continued(teacher: Decoder, example: Example, student_memory: Memory, queries: list[int]) -> dict[int, Tensor]:
    """The teacher at these queries, with the student's memory of all other positions."""
    memory = [
        {
            position: [(key_E.detach(), value_E.detach()) for key_E, value_E in heads]
            for position, heads in cells.items()
            if position not in queries
        }
        for cells in student_memory
    ]
    with torch.no_grad():
        return teacher.read({p: teacher.embedding_VD[example.ids[p]] for p in queries}, memory)


def text_only_hidden(teacher: Decoder, example: Example) -> dict[int, Tensor]:
    """The teacher's final hidden states [D] where it reads the text alone, as one that never shared anything."""
    read = [p for p, i in enumerate(example.ids) if i < len(teacher.embedding_VD) and not example.visual[p]]
    with torch.no_grad():
        hidden = teacher.read(
            {place: teacher.embedding_VD[example.ids[p]] for place, p in enumerate(read)}, teacher.empty_memory()
        )
    return {p: hidden[place] for place, p in enumerate(read)}


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


def distillation_loss(vlm: Any, lm: Any, examples: list[Example], objective: Objective) -> Result:
    """L = w_ce · Σ c_i CE_i / N_ce + w_kd · τ² · Σ d_i KD_i / N_kd over all examples of an optimizer step.

    N_ce are the tokens with a CE; N_kd all supervised tokens, or those with a KD term.

    Args:
        vlm: an Idefics3 in float64 with a Llama decoder, the student.
        lm: a Llama in float64, the teacher.
    """
    student = Decoder(vlm, "model.text_model.", vlm.config.text_config)
    teacher = Decoder(lm, "model.", lm.config)
    ce, kd = [], []
    ce_sum, kd_sum = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    labeled = 0
    for example in examples:
        memory = student.empty_memory()
        hidden = student.read(student_inputs(vlm, student, example), memory)
        answered = {}
        if example.distilled and objective.context == "prompt_text":
            answered = text_only_hidden(teacher, example)
        elif example.distilled:
            answered = teacher_hidden(teacher, example, memory, objective)
        ce_weight = example.ce_weight * (objective.ce_on_distilled if example.distilled else 1.0)
        for position in example.answers:
            student_V = student.head_VD @ hidden[position]
            ce.append(torch.logsumexp(student_V, 0) - student_V[example.ids[position + 1]])
            if example.sampled_from is None or position + 1 < example.sampled_from:
                ce_sum = ce_sum + ce_weight * ce[-1]
                labeled += 1
            if position in answered:
                kd.append(token_kd(teacher.head_VD.detach() @ answered[position], student_V, objective))
                kd_sum = kd_sum + example.kd_weight * kd[-1]
    ce_term = objective.w_ce * ce_sum / max(labeled, 1)
    n_kd = len(ce) if objective.kd_normalizer == "supervised" else len(kd)
    kd_term = objective.w_kd * objective.temperature**2 * kd_sum / max(n_kd, 1)
    return Result(ce_term + kd_term, ce, kd)


def gradients(vlm: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Gradient of the loss in every parameter of the student; zeros where it has no part in it."""
    names, parameters = zip(*vlm.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for name, parameter, gradient in zip(names, parameters, found, strict=True)
    }
