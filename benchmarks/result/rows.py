"""Run the experiment row by row: train and measure what is missing, and list what is done.

python -m benchmarks.result.rows list                      every row: state, minutes, command
python -m benchmarks.result.rows list main
python -m benchmarks.result.rows run                       the main rows
python -m benchmarks.result.rows run others map            more groups of rows
python -m benchmarks.result.rows run selective-1           one row with one seed, and what it starts from; any seed to 9
python -m benchmarks.result.rows run main minutes=50       a slice: then it saves and stops; the same command resumes

With size=gpu the same rows train for longer, in runs/result/gpu, for a machine with a GPU.

Runs with an export and measured models are not repeated. Ctrl-C saves and stops. Commands run in the working directory,
which has runs/result/data (benchmarks.result.data) and models/. Minutes are estimates that include measuring, for two
quiet cores with AMX, or with size=gpu for an H100. Checkpoints are removed once a row has its model.
"""

from __future__ import annotations

import logging
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from pydantic import Field

from benchmarks.result.jobs import (
    Command,
    borrow_items,
    command,
    drop_checkpoints,
    is_done,
    is_measured,
    measure_command,
    state,
)
from benchmarks.result.table import (
    CORES,
    GROUPS,
    ROWS,
    SEEDS,
    SIZES,
    Comparison,
    Job,
    Size,
    SizeName,
    comparison,
    jobs,
    minutes,
)
from lingu_ray.config import Section
from lingu_ray.config.command_line import names_and_settings
from lingu_ray.config.help_pages import Help
from lingu_ray.config.layout import table, text_width
from lingu_ray.errors import Interrupted, UserError, run_command
from lingu_ray.interrupt import heed_interrupts, save_on_interrupt

USAGE = "python -m benchmarks.result.rows list|run [NAME ...] [key=value ...]"

log = logging.getLogger(__name__)


class RunConfig(Section):
    """Settings of the command."""

    size: SizeName = Field("cores", description="; ".join(f"{name}: {size.about}" for name, size in SIZES.items()))
    minutes: float | None = Field(None, gt=0, description="run: save and stop after so long; null: when all is done")


def rows_help() -> Help[RunConfig]:
    """The pages of the command's `--help`."""
    rows = {one.name: f"{one.group}: {one.about}" for one in ROWS}
    chapters = "\n".join(["groups:", *table(GROUPS, text_width()), "", "rows:", *table(rows, text_width())])
    return Help(USAGE, f"{__doc__}\n{chapters}", RunConfig)


def main(arguments: list[str]) -> None:
    """List or run the named rows."""
    names, options = names_and_settings(arguments, rows_help())
    action, *wanted = names or ["list"]
    size = SIZES[options.size]
    if action == "list":
        show(chosen(wanted or list(GROUPS), size))
    elif action == "run":
        todo = chosen(wanted or ["main"], size)
        run(todo, Clock(options.minutes))
        print(f"done     {', '.join(job.name for job in todo)}")
    else:
        raise UserError(f"list or run, found {action!r}\nusage: {USAGE}")


def chosen(names: list[str], size: Size = CORES) -> list[Job]:
    """The jobs of names: of a group, a row (all seeds), or a row and seed.

    Raises:
        UserError: nothing has such a name.
    """
    found: dict[Job, None] = {}
    for name in names:
        of_name = jobs([one for one in ROWS if name in (one.group, one.name)], size)
        of_name = of_name or [job for seed in SEEDS for one in ROWS if (job := Job(one, seed, size)).name == name]
        if not of_name:
            raise UserError(
                f"no group or row {name!r}; groups are {', '.join(GROUPS)}, rows as --help lists them, alone or with a "
                f"seed from {SEEDS[0]} to {SEEDS[-1]}: selective-1"
            )
        found |= dict.fromkeys(of_name)
    return list(found)


def show(wanted: list[Job]) -> None:
    """Print each job with its state and command, and what is left to do."""
    for job in wanted:
        print(f"{state(job):8} {job.name:20} {minutes(job):4.0f} min  {job.row.about}")
        print(f"         {shlex.join(command(job))}")
    left = sum(minutes(job) for job in wanted if not is_done(job))
    print(f"{left:.0f} minutes are left of {sum(map(minutes, wanted)):.0f}")


class Clock:
    """The time that is left of some minutes; None: no limit."""

    def __init__(self, minutes: float | None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    @property
    def left(self) -> float | None:
        """Seconds that are left."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())


def run(wanted: list[Job], clock: Clock) -> None:
    """Train and measure what is missing of the jobs, and of those that they start from.

    Raises:
        Interrupted: Ctrl-C, or the time is over; finished work is kept.
        UserError: a command failed.
    """
    for job in dict.fromkeys(one for last in wanted for one in _with_starts(last)):
        if not is_done(job):
            call(command(job), clock)
        drop_checkpoints(job)
        if (of_job := comparison(job)) is not None:
            measure(of_job, clock)


def measure(one: Comparison, clock: Clock) -> None:
    """Measure the models of a comparison that were not measured yet."""
    if not is_measured(one):
        borrow_items(one)
        call(measure_command(one), clock)


def call(words: Command, clock: Clock) -> None:
    """Run a command to its end; let it save and stop when the time is over or Ctrl-C is pressed.

    Raises:
        Interrupted: it was stopped.
        UserError: it failed.
    """
    if clock.left == 0:
        raise Interrupted("the time is over; the same command continues")
    log.info("$ %s", shlex.join(words))
    heed_interrupts()
    process = subprocess.Popen([sys.executable, *words[1:]], start_new_session=True)  # Ctrl-C reaches it through us
    with save_on_interrupt(lambda: process.send_signal(signal.SIGINT)) as asked:
        try:
            code = process.wait(clock.left)
        except subprocess.TimeoutExpired:
            asked.set()
            process.send_signal(signal.SIGINT)
            code = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
    if asked.is_set():
        raise Interrupted("stopped and saved; the same command continues")
    if code:
        raise UserError(f"failed with exit code {code}: {shlex.join(words)}")


def _with_starts(job: Job) -> Iterator[Job]:
    """A job after those that it starts from."""
    if job.start is not None:
        yield from _with_starts(job.start)
    yield job


if __name__ == "__main__":
    run_command(main)
