"""Loads the student's processor from a run's folder. Slow to import, because of Transformers."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from transformers import AutoProcessor, ProcessorMixin

from lingu_ray.errors import UserError, first_line
from lingu_ray.hub import HUB_ERRORS


def run_processor(folder: Path | str, trust_remote_code: bool) -> ProcessorMixin:
    """The processor in a run's initial model; `trust_remote_code`: the run's `student.trust_remote_code`.

    Without trust, a processor with code of its own is refused, without a question on the terminal.
    """
    return cast(ProcessorMixin, AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code))


def kept_processor(folder: Path, trust_remote_code: bool) -> ProcessorMixin:
    """`run_processor` for a folder that an earlier command has written.

    Raises:
        UserError: the folder is gone or damaged.
    """
    try:
        return run_processor(folder, trust_remote_code)
    except HUB_ERRORS as error:
        raise UserError(
            f"{folder} is gone or damaged ({first_line(error)}): put it back from a copy, or remove it, and the "
            "command that trains the run writes it again"
        ) from error
