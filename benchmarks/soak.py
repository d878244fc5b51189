"""Fault injection: a run that is interrupted and killed again and again must end with an undisturbed run's weights.

    python -m benchmarks.soak run=my-run.yaml faults=30 out=FOLDER

At random steps comes one of these faults: Ctrl-C, SIGTERM, SIGKILL of the driver with all of its processes, SIGKILL of
a worker or of a teacher, and SIGKILL of the driver with the newest checkpoint cut in half. The same command is then
started again. Weights must be equal to the bit. Faults and their steps follow from `seed` alone. An interrupted soak
resumes: its runs do, and FOLDER/soak.log says which faults have happened. A fault long after its step is refused, since
the run would not be the planned one.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

import psutil
import torch
from pydantic import Field, PositiveInt
from safetensors.torch import load_file

from benchmarks.processes import kill, titled
from benchmarks.report import BenchmarkConfig, publish
from lingu_ray.config import Config, Several
from lingu_ray.config.command_line import load_config, settings_alone
from lingu_ray.config.help_pages import Help
from lingu_ray.errors import UserError, run_command
from lingu_ray.interrupt import heed_interrupts
from lingu_ray.paths import LocalPath
from lingu_ray.runtime.checkpoints.checkpoint import checkpoints
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.records import JsonLines, read_records

Fault = Literal["interrupt", "terminate", "kill_all", "kill_worker", "kill_teacher", "cut_checkpoint"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
_PROCESSES = {"kill_worker": "ray::RayTrainWorker", "kill_teacher": "ray::TeacherActor"}
_SIGNALS = {"interrupt": signal.SIGINT, "terminate": signal.SIGTERM}
_POLL_S = 0.02
_LATEST = 50  # steps that a fault may come late, as a worker or teacher may be starting


class SoakConfig(BenchmarkConfig):
    """Settings of the benchmark."""

    out: LocalPath = Field(Path("soak"), description="folder of the runs and the result")
    run: str = Field("demo", description="recipe or YAML file of the run")
    faults: PositiveInt = Field(10, description="how often it is struck")
    kinds: Several[Fault] = Field(FAULTS, description="faults to draw from")
    seed: int = Field(0, description="of the faults and their steps")


HELP = Help("python -m benchmarks.soak [key=value ...]", __doc__, SoakConfig)


def main(arguments: list[str]) -> None:
    """Soak, print, and write. Raises UserError where the weights differ, or the run ended before all faults."""
    options = settings_alone(arguments, HELP)
    options.out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    _finish(words(options, "undisturbed"))
    alone_s = time.monotonic() - begin
    struck = strike_all(options)
    equal = same_weights(*(config(options, name).run_dir for name in ("undisturbed", "struck")))
    row = {
        "steps": config(options, "struck").train.steps,
        "faults": len(struck),
        **Counter(struck),
        "undisturbed, s": alone_s,
        "struck, s": time.monotonic() - begin - alone_s,
        "equal": equal,
    }
    publish("soak", [row], options.out, options.recorded)
    if not equal:
        raise UserError(f"the weights differ: compare the two runs in {options.out}")
    if len(struck) < options.faults:
        raise UserError(
            f"the run ended after {len(struck)} of {options.faults} faults: give it more steps (train.steps), or fewer"
        )


def words(options: SoakConfig, name: str) -> list[str]:
    """The command line of one of the two runs, without evaluation and controls, during which no fault comes."""
    more = [f"ray.max_failures={options.faults}", "controls=[]", "evaluation.tasks=[]"]
    return [options.run, f"name={name}", f"output_dir={options.out / 'runs'}", *more]


def config(options: SoakConfig, name: str) -> Config:
    """The settings of one of the two runs."""
    return load_config(words(options, name))


def plan(options: SoakConfig, steps: int) -> list[tuple[int, Fault]]:
    """The faults and their steps, in order."""
    drawn = random.Random(options.seed)
    at = sorted(drawn.randint(1, max(1, steps - 1)) for _ in range(options.faults))
    return [(step, drawn.choice(options.kinds)) for step in at]


def strike_all(options: SoakConfig) -> list[Fault]:
    """Train the run to its end with the faults of the plan that have not happened yet; returns all that happened."""
    settings = config(options, "struck")
    folder, log = RunFolder(settings.run_dir), JsonLines(options.out / "soak.log")
    done = read_records(log.path)
    todo = plan(options, settings.train.steps)[len(done) :]
    while todo:
        with started(words(options, "struck")) as driver:
            before = len(todo)
            while todo and driver.poll() is None:
                step, fault = todo[0]
                now = _step(folder)
                refuse_late(fault, step, now)
                if now < step or not strike(fault, psutil.Process(driver.pid), folder):
                    time.sleep(_POLL_S)
                    continue
                print(f"step {now}: {fault}", file=sys.stderr)
                log.append({"step": step, "fault": fault})
                todo.pop(0)
                if fault not in _PROCESSES:
                    driver.wait()
            if driver.poll() is not None and len(todo) == before:
                break  # finished too early, or failed by itself: `_finish` or `main` reports it
    _finish(words(options, "struck"))
    return [record["fault"] for record in read_records(log.path)]


def refuse_late(fault: Fault, step: int, now: int) -> None:
    """Raise UserError if the run is far past a fault's step: it ran without the soak, or its target never appeared."""
    if now > step + _LATEST:
        raise UserError(
            f"{fault} was planned at step {step}, and the run is at {now}: its target never appeared, or the run went "
            "on without the soak; start again with another out"
        )


def strike(fault: Fault, driver: psutil.Process, folder: RunFolder) -> bool:
    """Cause the fault; False if its target does not exist yet."""
    if fault in _SIGNALS:
        driver.send_signal(_SIGNALS[fault])
    elif fault in _PROCESSES:
        if not (found := titled([driver], _PROCESSES[fault])):
            return False
        found[0].kill()
    else:
        saved = checkpoints(folder.checkpoints)
        if fault == "cut_checkpoint" and len(saved) < 2:  # with its only checkpoint cut, the run could not resume
            return False
        kill(driver)
        if fault == "cut_checkpoint":
            cut = next(checkpoints(folder.checkpoints)[-1][0].glob("model*.safetensors"))
            os.truncate(cut, cut.stat().st_size // 2)
    return True


def same_weights(*runs: Path) -> bool:
    """Whether two runs' exports are equal to the bit."""
    ours, theirs = (
        {name: tensor for file in sorted(run.glob("export/*.safetensors")) for name, tensor in load_file(file).items()}
        for run in runs
    )
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def tied(command: list[str]) -> list[str]:
    """The command, changed so that it is killed together with this process: it would run on without further faults.

    The kernel sends the signal. A shell in between checks that this process was still alive when the kernel was asked.
    """
    if not shutil.which("setpriv"):
        return command
    in_time = f'[ "$PPID" = {os.getpid()} ] && exec "$@"'
    return ["setpriv", "--pdeathsig", "KILL", "sh", "-c", in_time, "sh", *command]


@contextmanager
def started(arguments: list[str]) -> Iterator[subprocess.Popen]:
    """Run the training command; kill it at the end of the block if it still runs."""
    heed_interrupts()
    command = tied([sys.executable, "-m", "lingu_ray.train", *arguments])
    with subprocess.Popen(command, stdout=sys.stderr) as driver:
        process = psutil.Process(driver.pid)
        try:
            yield driver
        finally:
            if driver.poll() is None:
                kill(process)


def _finish(arguments: list[str]) -> None:
    """Train to the end."""
    with started(arguments) as driver:
        if driver.wait() != 0:
            raise UserError(f"lingu_ray.train {' '.join(arguments)} ended with {driver.returncode}")


def _step(folder: RunFolder) -> int:
    records = read_records(folder.metrics)
    return records[-1]["step"] if records else 0


if __name__ == "__main__":
    run_command(main)
