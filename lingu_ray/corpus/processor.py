"""The student's processor as a run has saved it. Slow to import: it takes Transformers along."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from transformers import AutoProcessor, ProcessorMixin


def run_processor(folder: Path | str, trust_remote_code: bool) -> ProcessorMixin:
    """The processor in a run's initial model; `trust_remote_code`: the run's `student.trust_remote_code`.

    Without it a processor with code of its own is refused, and nobody is asked on the terminal.
    """
    return cast(ProcessorMixin, AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code))
