"""The method for a training loop of your own: plain Transformers models and a processor's batch in, a loss out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lingu_ray.distill.arguments import as_number, check_choice
from lingu_ray.distill.batch import read_batch, read_distill, visual_token_ids
from lingu_ray.distill.decoder import longest_row
from lingu_ray.distill.divergence import divergence_of
from lingu_ray.distill.donation import Context, EarlierTurns, Scope, predicting
from lingu_ray.distill.inputs import ModelInputs
from lingu_ray.distill.pair import (
    check_frequencies,
    check_models,
    check_no_auxiliary_loss,
    check_one_device,
    check_separate,
    check_tokenizers,
    known_ids,
)
from lingu_ray.distill.step import DistillStep, SampleScales
from lingu_ray.distill.student import Student
from lingu_ray.distill.teacher import Teacher
from lingu_ray.errors import UserError


@dataclass(frozen=True)
class TokenCounts:
    """How many tokens have a cross-entropy (`ce`) and a KD term (`kd`)."""

    ce: int
    kd: int

    def __add__(self, other: TokenCounts) -> TokenCounts:
        return TokenCounts(self.ce + other.ce, self.kd + other.kd)


@dataclass(frozen=True)
class DistillOutput:
    """What `Distiller` returns for a batch.

    `loss`: w_ce · ce + w_kd · τ² · kd, a scalar to call `backward()` on.
    `ce`, `kd`: sums of the batch's cross-entropies (nats) and divergences over `tokens`, detached. `counts`: the
    batch's own tokens.
    """

    loss: Tensor
    ce: Tensor
    kd: Tensor
    counts: TokenCounts


torch.export.register_dataclass(DistillOutput)  # DistributedDataParallel with static_graph=True finds the loss in it


class Distiller(nn.Module):
    """LinguDistill's loss (arXiv 2604.00829, section 3) for a student and a teacher of Transformers.

        L = (w_ce · Σ CE  +  w_kd · τ² · Σ KD_τ) / tokens

    CE is summed over all supervised tokens, KD over those of the rows to distill; both are divided by the number of
    supervised tokens, so that a token's KD weighs the same however many rows are distilled. The text-only teacher
    continues from the keys and values that the student computed for the prompt, images included. It has no gradient,
    and none flows back through those keys and values.

    Both models are changed: the student's attention donates its KV, the teacher is frozen and in eval mode. The module
    holds the student alone: `parameters()`, `to()` and `state_dict()` are the student's, the teacher is not moved.
    To train on several devices wrap the module (`DistributedDataParallel`, `fully_shard`), not the student.

    Args:
        student: a vision-language model (`AutoModelForImageTextToText`), not wrapped.
        teacher: the text-only causal LM that its decoder came from (`AutoModelForCausalLM`), loaded in any float dtype.
        divergence: forward_kl, reverse_kl, jsd or tv.
        beta: the teacher's weight in the mixture of jsd.
        top_k: compare the teacher's k likeliest tokens and the rest as one; None: every token.
        temperature: τ. It, `w_ce` and `w_kd` are attributes, which a schedule may set between steps.
        w_ce: weight of the cross-entropy.
        w_kd: weight of the KD term.
        context: shared_kv, or prompt_text, the ablation in which the teacher reads the prompt's text instead.
        scope: full donates every prompt position, visual the image positions alone.
        earlier_turns: whose keys and values stand for a conversation's earlier answers where a later one is judged:
            student, as for all of a prompt, or teacher.
        tokenizers: the student's and the teacher's, to check that ids mean the same, and to compare those alone that
            the teacher's has tokens for; None: all that the teacher has a row for.

    Raises:
        UserError: the two do not fit each other (every difference is named) or have weights in common, or an argument
            is out of range.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        *,
        divergence: str = "forward_kl",
        beta: float = 0.5,
        top_k: int | None = None,
        temperature: float = 1.0,
        w_ce: float = 1.0,
        w_kd: float = 1.0,
        context: Context = "shared_kv",
        scope: Scope = "full",
        earlier_turns: EarlierTurns = "student",
        tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase] | None = None,
    ):
        super().__init__()
        check_models(student, teacher)
        check_one_device(student, teacher)
        check_no_auxiliary_loss(student)
        check_separate(student, teacher)
        check_frequencies(student, teacher)
        if tokenizers is not None:
            _check_are_tokenizers(tokenizers)
            check_tokenizers(*tokenizers)
        check_choice("context", context, Context)
        check_choice("scope", scope, Scope)
        check_choice("earlier_turns", earlier_turns, EarlierTurns)
        divergence_fn = divergence_of(divergence, beta, top_k)
        visual_token_ids(student)
        lengths = [longest_row(model.config.get_text_config(decoder=True)) for model in (student, teacher)]
        self._longest = min((length for length in lengths if length is not None), default=None)
        self.temperature, self.w_ce, self.w_kd = temperature, w_ce, w_kd
        self._check_weights()
        self.student = student
        known = None if tokenizers is None else known_ids(tokenizers[1], teacher.config, "teacher")
        self._teacher = Teacher(teacher, known)
        self._step = DistillStep(Student(student), self._teacher, divergence_fn, context, scope, earlier_turns)
        decoder = self._step.student.decoder
        if _with_gradient not in decoder._forward_pre_hooks.values():
            decoder.register_forward_pre_hook(_with_gradient, with_kwargs=True)

    def forward(
        self,
        batch: Mapping[str, Any],
        distill: Tensor | Sequence[bool] | None = None,
        *,
        tokens: float | Tensor | None = None,
    ) -> DistillOutput:
        """The loss of one batch; it runs student and teacher.

        Args:
            batch: tensors of the student's processor (`input_ids` and `attention_mask` `[B, T]`, `pixel_values`, …) and
                `labels` `[B, T]`: the ids that are learned, -100 elsewhere. Padding on any side.
            distill: `[B]` bool, the rows with a KD term; None: all.
            tokens: what the sums are divided by; None: the batch's supervised tokens. For gradient accumulation or data
                parallelism pass the supervised tokens of the whole optimizer step (`count(...).ce`, summed): the
                gradients then add up to those of one large batch.

        Raises:
            UserError: the batch cannot be used; the message names the tensor.
        """
        if self.student is not self._step.student.model:
            raise UserError(
                "student: another model stands in the place of the Distiller's own, which is what it would run: make a "
                "Distiller of the other one"
            )
        if self._teacher.model.device != self.student.device:
            raise UserError(
                f"the student is on {self.student.device} and the teacher on {self._teacher.model.device}: "
                "move the teacher there, and offload none of it (device_map)"
            )
        if isinstance(self._step.student.output_head.weight_VD, DTensor):
            raise UserError(
                "student: its weights are sharded, and nobody gathers them: fully_shard(distiller) after its layers, "
                "not the student"
            )
        check_frequencies(self.student, self._teacher.model)
        self._check_weights()
        inputs = read_batch(batch, self._step.student, self._longest)
        distill_B = read_distill(distill, len(inputs.input_ids_BT))
        zero = self._zero(inputs)
        plan = self._step.plan(inputs, distill_B)
        done, request = self._step.forward(inputs, plan)
        (teacher,) = self._step.teacher_outputs(self._step.ask([request]), [done])
        counts = TokenCounts(len(done.labels_N), plan.tokens if plan else 0)
        by = _divisor(tokens, counts.ce)
        scales = SampleScales(
            ce_S=torch.full_like(distill_B, as_number(self.w_ce) / by, dtype=torch.float32),
            kd_S=torch.full_like(distill_B, as_number(self.w_kd) / by, dtype=torch.float32),
            temperature=float(self.temperature),
        )
        terms = self._step.loss(done, teacher, scales)
        return DistillOutput(terms.loss + zero, terms.ce_N.sum() / by, terms.kd_M.sum() / by, counts)

    def count(self, batch: Mapping[str, Any], distill: Tensor | Sequence[bool] | None = None) -> TokenCounts:
        """The batch's tokens with a CE and a KD term, without running a model; arguments and errors as `forward`."""
        inputs = read_batch(batch, self._step.student, self._longest)
        plan = self._step.plan(inputs, read_distill(distill, len(inputs.input_ids_BT)))
        supervised = int(predicting(inputs.supervised_BT, inputs.sample_BT).sum())
        return TokenCounts(supervised, plan.tokens if plan else 0)

    def _zero(self, inputs: ModelInputs) -> Tensor | int:
        """0, with a gradient for every trained parameter of tower and projector, so that a batch of any kind has them.

        Text does not run them, and some images run a part. What wraps the module sums gradients over the processes, and
        counts on the same parameters from each.
        """
        groups = self._step.student.parameter_groups()
        parameters = [parameter for _, parameter in groups["vision"] + groups["projector"]]
        gathered = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
        if not inputs.vision and len(gathered) < len(parameters):
            raise UserError(
                "student: its vision tower or projector is sharded by itself, and processes whose batch has images "
                "would wait for this one, whose batch has none: fully_shard(distiller) after the decoder's layers alone"
            )
        trained = [parameter for parameter in gathered if parameter.requires_grad]
        return _Zero.apply(*trained) if trained else 0

    def _check_weights(self) -> None:
        """Raise UserError for a temperature or weights that no loss can have, whoever set them."""
        if not 0 < as_number(self.temperature) < math.inf:
            raise UserError(f"temperature={self.temperature!r}: must be a number above 0")
        for name, weight in (("w_ce", self.w_ce), ("w_kd", self.w_kd)):
            if not 0 <= as_number(weight) < math.inf:
                raise UserError(f"{name}={weight!r}: must be a number from 0 on")


def _with_gradient(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Let what goes into a sharded decoder have a gradient, also of text behind a frozen embedding matrix.

    FSDP2 reduces the gradients of a layer whose input has none after all others, and those of the processes that read
    images, whose towers learn, in another order: each would wait for the other.
    """
    embeds = kwargs.get("inputs_embeds")
    if embeds is not None and torch.is_grad_enabled() and not embeds.requires_grad:
        embeds.requires_grad_(any(isinstance(parameter, DTensor) for parameter in decoder.parameters()))


class _Zero(torch.autograd.Function):
    """0, with a gradient of 0 for each tensor that it is given; none of them is read."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.kinds = [(tensor.dtype, tensor.shape) for tensor in tensors]
        return tensors[0].new_zeros((), dtype=torch.float32)

    @staticmethod
    # pyrefly: ignore [bad-override]  (the base class names no parameters)
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, ...]:
        zeros = grad_outputs[0].new_zeros(len(ctx.kinds)).unbind()  # a gradient of one element is kept as it is
        return tuple(zero.to(dtype).expand(shape) for zero, (dtype, shape) in zip(zeros, ctx.kinds, strict=True))


def _check_are_tokenizers(given: Any) -> None:
    """Raise UserError for anything but two tokenizers."""
    kinds = [type(one).__name__ for one in given] if isinstance(given, tuple | list) else [type(given).__name__]
    if len(kinds) != 2 or not all(isinstance(one, PreTrainedTokenizerBase) for one in given):
        raise UserError(
            "tokenizers: must be the student's and the teacher's, (processor.tokenizer, tokenizer); these are "
            f"{', '.join(kinds) or 'none'}"
        )


def _divisor(given: float | Tensor | None, own: int) -> float:
    """The number of tokens to divide by, at least 1."""
    if isinstance(given, Tensor) and given.is_floating_point() and given.itemsize < torch.float32.itemsize:
        raise UserError(
            f"tokens: numbers above 256 or 2048 are rounded in {given.dtype}, to which FSDP2 casts what a module is "
            "given: pass a number of Python (.item())"
        )
    count = as_number(own if given is None else given)
    if not 0 <= count < math.inf:
        raise UserError(f"tokens={given!r}: must be a number of tokens")
    return max(count, 1)
