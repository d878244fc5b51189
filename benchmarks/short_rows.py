"""A training step in bfloat16 on a CPU, with rows of several lengths.

    python -m benchmarks.short_rows out=docs/performance

Plain fine-tuning of SmolLM2-135M's shapes on short texts, whole steps of one micro-batch, in two ways:

    bf16  attention in bfloat16, as everything else
    ours  as training does it: attention over short rows in float32 (`lingu_ray/distill/short_rows.py`)

The two are timed in turn, so that changes of the machine's speed favor neither. A CPU without bfloat16 trains in
float32, where there is nothing to compare.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pydantic import Field, PositiveInt

from benchmarks.report import BenchmarkConfig, Row, beside, measure, publish
from benchmarks.text_training import TextTraining, text_batches
from lingu_ray.config import Several
from lingu_ray.config.command_line import settings_alone
from lingu_ray.config.help_pages import Help
from lingu_ray.distill import short_rows
from lingu_ray.errors import run_command


class ShortRowsConfig(BenchmarkConfig):
    """Settings of the benchmark."""

    repeats: PositiveInt = Field(5, description="rounds of timing")
    tokens: Several[PositiveInt] = Field((32, 64, 128, 160), description="tokens of a row; half of them are the answer")
    longest: PositiveInt = Field(short_rows.LONGEST, description="tokens of a row that `ours` counts as short")
    tokens_per_micro_batch: PositiveInt = Field(2048, description="tokens of a step, which is one micro-batch")
    layers: PositiveInt = Field(30, description="decoder layers; SmolLM2-135M has 30")
    hidden: PositiveInt = Field(576, multiple_of=192, description="decoder width")


HELP = Help("python -m benchmarks.short_rows [key=value ...]", __doc__, ShortRowsConfig)


def main(arguments: list[str]) -> None:
    """Measure and publish."""
    options = settings_alone(arguments, HELP)
    settings = options.recorded
    rows = [row for tokens in settings["tokens"] for row in _rows(tokens, settings)]
    publish("short_rows", rows, options.out, settings)


def _rows(tokens: int, settings: Row) -> list[Row]:
    """Both ways on rows of one length."""
    training, most = TextTraining(settings, "bf16"), settings["tokens_per_micro_batch"]
    step = partial(training.step, text_batches([tokens] * (most // tokens), most))
    ways = {"bf16": _with_longest(0, step), "ours": _with_longest(settings["longest"], step)}
    timings = measure(ways, settings["repeats"])
    return [{"tokens": tokens, "way": way} | beside(one, timings["bf16"], "bf16") for way, one in timings.items()]


def _with_longest(longest: int, step: Callable[[], None]) -> Callable[[], None]:
    """The step, with rows of up to `longest` tokens counted as short."""

    def limited() -> None:
        usual, short_rows.LONGEST = short_rows.LONGEST, longest
        try:
            step()
        finally:
            short_rows.LONGEST = usual

    return limited


if __name__ == "__main__":
    run_command(main)
