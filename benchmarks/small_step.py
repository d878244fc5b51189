"""The fixed cost of an optimizer step, which does not shrink with its rows.

    python -m benchmarks.small_step out=docs/performance

Plain fine-tuning of SmolLM2-135M's shapes on short texts, whole steps in two ways, at several numbers of rows a step:

    default  AdamW as PyTorch runs it unless told otherwise, and gradients made anew each step
    ours     as training does it: one fused update over memory, and gradients that are kept and zeroed

The two are timed in turn, so that changes of the machine's speed favor neither. Long steps have fewer rounds: for each
number of rows no round begins after `most_seconds`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from pydantic import Field, PositiveInt

from benchmarks.report import BenchmarkConfig, Row, beside, measure, plot_bars, publish
from benchmarks.text_training import TextTraining, text_batches
from lingu_ray.config import Several
from lingu_ray.config.command_line import settings_alone
from lingu_ray.config.help_pages import Help
from lingu_ray.errors import run_command
from lingu_ray.runtime.training.distributed import clip_gradients


class SmallStepConfig(BenchmarkConfig):
    """Settings of the benchmark."""

    repeats: PositiveInt = Field(5, description="rounds of timing")
    most_seconds: PositiveInt = Field(600, description="time after which a number of rows has no further round")
    rows: Several[PositiveInt] = Field((8, 32, 128), description="rows of a step")
    tokens_per_micro_batch: PositiveInt = Field(1024, description="as train.tokens_per_micro_batch")
    tokens: PositiveInt = Field(32, description="tokens of a row; half of them are the answer")
    layers: PositiveInt = Field(30, description="decoder layers; SmolLM2-135M has 30")
    hidden: PositiveInt = Field(576, multiple_of=192, description="decoder width")


HELP = Help("python -m benchmarks.small_step [key=value ...]", __doc__, SmallStepConfig)


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    options = settings_alone(arguments, HELP)
    settings = options.recorded
    rows = [row for count in settings["rows"] for row in _rows(count, settings)]
    publish("small_step", rows, options.out, settings, plot=plot)


def plot(rows: list[Row], path: Path) -> None:
    """Two bars for each number of rows."""
    counts = list(dict.fromkeys(row["rows"] for row in rows))
    heights = {way: [row["median_s"] for row in rows if row["way"] == way] for way in ("default", "ours")}
    plot_bars(path, "A small step's fixed cost", "seconds a step", [f"{count} rows" for count in counts], heights)


def _rows(count: int, settings: Row) -> list[Row]:
    """Both ways at one number of rows a step."""
    ways = {"default": _way(count, settings, ours=False), "ours": _way(count, settings, ours=True)}
    timings = measure(ways, settings["repeats"], most_seconds=settings["most_seconds"])
    return [
        {"rows": count, "way": way, **beside(timing, timings["default"], "default"), "rounds": len(timing.seconds)}
        for way, timing in timings.items()
    ]


def _way(count: int, settings: Row, *, ours: bool) -> Callable[[], None]:
    """A whole step of a student of its own."""
    training = TextTraining(settings, "fp32")
    batches = text_batches([settings["tokens"]] * count, settings["tokens_per_micro_batch"])
    if ours:
        return partial(training.step, batches)
    optimizer = torch.optim.AdamW(training.parameters, lr=1e-6)

    def default_step() -> None:
        optimizer.zero_grad()
        training.backward(batches)
        clip_gradients(training.parameters, 1.0)
        optimizer.step()

    return default_step


if __name__ == "__main__":
    run_command(main)
