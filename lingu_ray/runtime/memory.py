"""Memory of a GPU that does not suffice: an error that the user can fix, in this process or as Ray brings it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lingu_ray.errors import UserError, user_error

FOR_TRAINING = (
    "lower train.tokens_per_micro_batch, set train.gradient_checkpointing=true or train.precision=bf16, or give the "
    "teacher a GPU of its own (ray.gpus_per_worker=2)"
)
"""What helps a worker and its teacher."""


@contextmanager
def explained(who: str, cure: str) -> Iterator[None]:
    """Within it, a GPU that is out of memory is a `UserError` that names `who` and `cure`; other errors stay as are."""
    try:
        yield
    except Exception as error:
        if user_error(error) is not None or (found := out_of_memory(error)) is None:
            raise
        raise UserError(f"{who} ran out of GPU memory: {cure}. {found}") from error


def out_of_memory(error: BaseException | None) -> str | None:
    """The allocator's first words where an error is, or wraps, one of a GPU out of memory; else None."""
    while error is not None:
        inner = getattr(error, "cause", None)  # of a Ray task's error, which is of its cause's type, too
        if isinstance(error, torch.OutOfMemoryError) and inner is None:
            return str(error).partition(" Of the allocated memory")[0].partition("\n")[0]
        error = inner or error.__cause__
    return None
