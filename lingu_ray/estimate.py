"""Estimate what a run needs before it is started: memory of every process, bytes it moves, time of a step.

Takes what training takes, a recipe or a settings file with its settings, and runs nothing: of the models their
configurations are read (config.json), no weights. Shown are

  worker      weights, gradients, optimizer, what a full micro-batch keeps, and the most that a step takes beside that
  teacher     in its own process or in the worker's
  evaluation  an engine with the student, where tasks are named
  host        rows that wait, KV in the object store, the copy of a checkpoint, models that are loaded or exported
  time        of a step and of the run, by operations and bytes; bytes of KV

and whether the device holds it; if not, what each setting that takes less memory would change. What a micro-batch keeps
is counted on the decoder's own code, on tensors without memory. The time is a formula (docs/scaling.md) with figures of
the devices' makers: expect a factor, not a per cent. Of device=cpu the rate is measured here, for some seconds.

Rows are what you say they are; `lingu-ray inspect` counts those of your data.

examples:
  python -m lingu_ray.estimate my.yaml                              on what this machine has
  python -m lingu_ray.estimate smolvlm-256m device=h100
  python -m lingu_ray.estimate my.yaml device=l4 image_tokens=1088 text_tokens=100 answer_tokens=40
  python -m lingu_ray.estimate my.yaml device=a100 train.tokens_per_micro_batch=4096 train.gradient_checkpointing=true
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lingu_ray.config import Config
from lingu_ray.config.command_line import run_and_own
from lingu_ray.config.help_pages import Help
from lingu_ray.cost.workload import RowConfig
from lingu_ray.errors import UserError, run_command
from lingu_ray.inspect import with_demo

if TYPE_CHECKING:
    from lingu_ray.cost.estimate import Estimate


class EstimateConfig(RowConfig):
    """Settings of the command; all others are those of the run."""

    device: Literal["h100", "h200", "a100", "l4", "rtx4090", "cpu"] | None = Field(
        None, description="what a worker runs on; null: what this machine has"
    )


USAGE = "python -m lingu_ray.estimate [RECIPE | file.yaml] [key=value ...]"
HELP = Help(USAGE, __doc__, EstimateConfig)


def main(arguments: list[str]) -> None:
    """Run the command; raises UserError for a mistake of the user."""
    config, settings = read_arguments(arguments)

    from transformers.utils import logging as transformers_logging

    from lingu_ray.cost.estimate import estimate
    from lingu_ray.cost.table import lines

    transformers_logging.set_verbosity_error()
    logging.getLogger("lingu_ray").setLevel(logging.WARNING)
    row = RowConfig(**settings.model_dump(exclude={"device"}))
    found: Estimate = estimate(with_demo(config, USAGE), row, settings.device)
    for line in lines(found):
        print(line, flush=True)


def read_arguments(arguments: list[str]) -> tuple[Config, EstimateConfig]:
    """The run, and the command's own settings. Raises `UserError` for whatever is wrong in them."""
    config, further, settings = run_and_own(arguments, HELP)
    if further:
        raise UserError(f"one recipe or file, and {' '.join(further)} beside it\nusage: {USAGE}")
    return config, settings


if __name__ == "__main__":
    run_command(main)
