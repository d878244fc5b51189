"""Memory that does not suffice, a GPU's or a node's: an error that the user can fix, here or as Ray brings it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import ray.exceptions
import torch

from lingu_ray.errors import UserError, causes, first_line, full_gpu, user_error

FOR_TRAINING = (
    "lower train.tokens_per_micro_batch, set train.gradient_checkpointing=true, give the teacher a GPU of its own "
    "(ray.gpus_per_worker=2), or, before the first checkpoint, set train.precision=bf16"
)
"""What helps a worker and its teacher."""


@contextmanager
def explained(who: str, cure: str) -> Iterator[None]:
    """Within it, memory that does not suffice is a `UserError` that names `who` and `cure`; others stay as they are."""
    try:
        yield
    except Exception as error:
        if user_error(error) is not None:
            raise
        if (full := full_node(error)) is not None:
            raise ended_by_ray(who, cure, full) from error
        if (found := out_of_memory(error)) is None:
            raise
        raise UserError(f"{who} ran out of GPU memory: {cure}. {found}") from error


def ended_by_ray(who: str, cure: str, full: str) -> UserError:
    """The error where Ray ended a process, since the memory of its node was all but used; `full`: how far."""
    return UserError(
        f"{who} was ended by Ray, since its node ran out of memory ({full}): run less beside it, or {cure}. What was "
        "saved is kept: the same command resumes"
    )


def full_node(error: BaseException | None) -> str | None:
    """How much of a node's memory was used, where an error is, or wraps, that of a process which Ray ended for that."""
    for one in causes(error):
        if isinstance(one, ray.exceptions.OutOfMemoryError):
            used = re.search(r"\S+ used / \S+ limit", str(one))
            return used[0] if used else first_line(one)
    return None


def out_of_memory(error: BaseException | None) -> str | None:
    """The first words of torch's allocator, or of CUDA, where an error is, or wraps, one of a GPU out of memory.

    Else None.
    """
    for one in causes(error):
        if isinstance(one, torch.OutOfMemoryError):
            return first_line(one).partition(" Of the allocated memory")[0]
        if said := full_gpu(one):
            return said
    return None
