"""Interpolation of a student's decoder with its teacher in weight space: the baseline of merging.

Shape suffixes: V the student's vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lingu_ray.errors import UserError


@torch.no_grad()
def interpolate_(student: PreTrainedModel, teacher: PreTrainedModel, weight: float, common_V: Tensor) -> None:
    """Make decoder, embeddings and head of `student` `weight · teacher + (1 − weight) · student`, in place.

    Args:
        student: a VLM; its vision tower and projector stay as they are.
        teacher: the LM, of the same architecture.
        weight: the teacher's share; 0 leaves every bit of the student, 1 gives every bit of the teacher.
        common_V: the ids whose rows of embeddings and head are interpolated; the other rows stay the student's.

    Raises:
        UserError: one of the two has a parameter that the other lacks, or ties its head where the other does not.
    """
    rows = common_V.nonzero().squeeze(1)
    for name, ours, theirs in _pairs(student, teacher):
        if name in (_EMBEDDINGS, _HEAD):
            ours[rows] = torch.lerp(ours[rows], theirs[rows], weight)
        else:
            ours.lerp_(theirs, weight)


def common_ids(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, student_rows: int, teacher_rows: int
) -> Tensor:
    """`[V]` bool: the ids that both models have a row for and that are no token of the student's own.

    A VLM often writes its image tokens over reserved or unused rows of its LM: those stay the student's.
    """
    known = {(token, i) for token, i in teacher.get_vocab().items()}
    own = [i for token, i in student.get_vocab().items() if (token, i) not in known and i < student_rows]
    common_V = torch.arange(student_rows) < teacher_rows
    common_V[own] = False
    return common_V


_EMBEDDINGS, _HEAD = "embeddings", "head"


def _pairs(student: PreTrainedModel, teacher: PreTrainedModel) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Every parameter of decoder and head once, with the teacher's of the same name."""
    ours, theirs = _parameters(student), _parameters(teacher)
    if different := sorted(ours.keys() ^ theirs.keys()):
        if different == [_HEAD]:
            tied, untied = ("student", "teacher") if _HEAD in theirs else ("teacher", "student")
            raise UserError(
                f"the {tied}'s output head is its embedding matrix and the {untied}'s is not: no weights between the "
                "two fit both. Take the LM that the student's decoder was initialized from as teacher"
            )
        raise UserError(
            f"student and teacher do not have the same parameters; only one of them has {', '.join(different[:5])}. "
            "Take the LM that the student's decoder was initialized from as teacher"
        )
    for name, parameter in ours.items():
        yield name, parameter, theirs[name]


def _parameters(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters of the decoder by name, and of the head where it is not the embedding matrix."""
    table = cast(Tensor, model.get_input_embeddings().weight)
    head = cast(Tensor, cast(nn.Module, model.get_output_embeddings()).weight)
    named = {_EMBEDDINGS if p is table else name: p for name, p in model.get_decoder().named_parameters()}
    return named if head is table else named | {_HEAD: head}
