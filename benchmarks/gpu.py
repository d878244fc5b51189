"""What a machine's GPU makes of all this, by one command; what is asked most comes first.

    python -m benchmarks.gpu                                   a quarter of an hour on one H100
    python -m benchmarks.gpu sections=parity,step out=runs/gpu
    python -m benchmarks.gpu size=tiny                         the same with next to nothing in it, on CPUs too

Sections:

    step        what the teacher costs a step in time and memory, in the shapes of four models (benchmarks.step)
    loss        the loss beside those of Liger and TRL, where they are installed (benchmarks.loss)
    transport   KV from worker to teacher (benchmarks.transport)
    choices     attention, frozen weights, launches: what is chosen on GPUs beside what is not (benchmarks.choices)
    parity      a step on the GPU against the CPU's, and with the teacher in an actor (benchmarks.parity)
    evaluate    vLLM against Transformers, where vLLM is installed (benchmarks.evaluate)

Each part of a section is a process of its own, whose results and log are in a folder of `out`. One that fails, or takes
longer than `most_seconds`, is named with its error in the table, the others still run, and the exit code is 1. The same
command again measures only what is missing, on the same machine with the same source and packages; `again=true` all.
`out/gpu.json` has everything, with device, driver and versions; `out/gpu.md` the tables.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import psutil
from pydantic import Field, PositiveInt

from benchmarks.pairs import PairName
from benchmarks.report import BenchmarkConfig, Row, publish
from lingu_ray.atomic import write_json
from lingu_ray.config import Several
from lingu_ray.config.command_line import settings_alone
from lingu_ray.config.help_pages import Help
from lingu_ray.errors import UserError, run_command
from lingu_ray.paths import LocalPath
from lingu_ray.runtime.doctor.gpu import MEND_DRIVER, gpus
from lingu_ray.runtime.tracking.environment import describe_environment

_PR_SET_PDEATHSIG = 1  # of Linux's prctl
SectionName = Literal["step", "loss", "transport", "choices", "parity", "evaluate"]
MODELS: tuple[PairName, ...] = ("SmolVLM-256M", "SmolVLM-500M", "nanoVLM-460M", "Qwen2-VL-2B")


class GpuConfig(BenchmarkConfig):
    """Settings of the benchmark."""

    out: LocalPath = Field(Path("runs/gpu"), description="folder for results and logs")
    sections: Several[SectionName] = Field(get_args(SectionName), description="what is measured")
    size: Literal["full", "tiny"] = Field("full", description="full: shapes of known models; tiny: to try the command")
    most_seconds: PositiveInt = Field(300, description="after which a part is given up")
    again: bool = Field(False, description="measure what is there already, too")


HELP = Help("python -m benchmarks.gpu [key=value ...]", __doc__, GpuConfig)


@dataclass(frozen=True)
class Part:
    """One benchmark with its settings; `name` tells it from the others of its section."""

    section: SectionName
    name: str
    arguments: tuple[str, ...]

    @property
    def title(self) -> str:
        """Section and name; also its folder."""
        return f"{self.section}-{self.name}" if self.name else self.section

    @property
    def command(self) -> str:
        """As one would type it."""
        return shlex.join(["python", "-m", f"benchmarks.{self.section}", *self.arguments])


def main(arguments: list[str]) -> None:
    """Measure and publish; raises UserError where a part failed."""
    options = settings_alone(arguments, HELP)
    if options.size == "full":
        _require_gpu()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the part that runs is ended, too
    parts = [part for part in parts_of(options.size) if part.section in options.sections]
    if find_spec("vllm") is None and any(part.section == "evaluate" for part in parts):
        print("evaluate: left out, vllm is not installed", file=sys.stderr)
        parts = [part for part in parts if part.section != "evaluate"]
    rows, results = [], {}
    try:
        for number, part in enumerate(parts, 1):
            print(f"{number} of {len(parts)}: {part.command}", file=sys.stderr)
            row, result = measured(part, options)
            rows.append(row)
            results |= {part.title: result} if result else {}
    finally:  # of a command that is ended, what there is
        if rows:
            details = {"environment": describe_environment(), "parts": results}
            publish("gpu", rows, options.out, options.recorded, details)
            _append_tables(parts[: len(rows)], options.out)
    if failed := [row["part"] for row in rows if row["state"] == "failed"]:
        raise UserError(f"failed: {', '.join(failed)}; their logs are in {options.out}")


def _require_gpu() -> None:
    """Raise UserError where nvidia-smi shows no GPU, or fails."""
    shown, smi_error = gpus()
    if smi_error:
        raise UserError(f"nvidia-smi fails here: {smi_error}: {MEND_DRIVER}")
    if not shown:
        raise UserError("nvidia-smi shows no GPU here: size=tiny tries the command without one")


def parts_of(size: str) -> list[Part]:
    """All parts, those first that are asked for most."""
    if size == "tiny":
        rows = ("rows=2", "micro_batches=2", "image_tokens=4", "text_tokens=4", "answer_tokens=4")
        return [
            Part("step", "tiny", ("pair=tiny", *rows, "repeats=1", "ways=in_process,actor_1,cuda_ipc_1")),
            Part("loss", "", ("tokens=64", "vocabulary=512", "width=64", "repeats=1")),
            Part("transport", "", ("sizes=1", "dtypes=bfloat16", "repeats=1")),
            Part("choices", "", ("pair=tiny", *rows, "repeats=1")),
            Part("parity", "tiny", ("pair=tiny", *rows)),
            Part("evaluate", "", ("layers=1", "items=2", "images=1", "new_tokens=2", "repeats=1")),
        ]
    timed = ("ways=in_process,cuda_ipc_1,actor_1,in_process_joined,full_sequence", "repeats=9", "most_seconds=60")
    return [
        *(
            Part("step", pair, (f"pair={pair}", f"rows={8 if 'Qwen' in pair else 16}", "precision=bf16", *timed))
            for pair in MODELS
        ),
        Part("loss", "large", ("tokens=8192", "vocabulary=131072")),  # compiling Liger's takes most of the time
        Part("transport", "", ("sizes=64,256", "dtypes=bfloat16")),
        Part("choices", "", ()),
        *(Part("parity", pair, (f"pair={pair}",)) for pair in ("SmolVLM-256M", "Qwen2-VL-2B")),
        Part("loss", "small", ("tokens=1024,8192", "vocabulary=49152")),
        Part("evaluate", "", ("tokens_per_batch=8192", "items=256", "images=64")),
    ]


def measured(part: Part, options: GpuConfig) -> tuple[Row, Row | None]:
    """A part's row in the table and its whole result, if it has one: as an earlier command left it, or measured now."""
    folder = options.out / part.title
    # a virtual machine may be given its memory bit by bit, as it is used
    environment = {name: value for name, value in describe_environment().items() if name != "memory"}
    stamp = {"command": part.command, "environment": environment}
    error = None
    if options.again or _read(folder / "stamp.json") != stamp:
        begin = time.monotonic()
        error = _run(part, folder, options.most_seconds)
        write_json(folder / "seconds.json", time.monotonic() - begin)
        if not error:
            write_json(folder / "stamp.json", stamp)
    result = _read(folder / f"{part.section}.json")  # a comparison that fails has one, too
    found = error or SUMMARIES[part.section](result)
    row = {"part": part.title, "state": "failed" if error else "ok", "seconds": _read(folder / "seconds.json")}
    return row | {"found": found}, result


def _run(part: Part, folder: Path, most_seconds: float) -> str | None:
    """Run it in a process of its own; what went wrong, in a line."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # A fork has everything imported. It is free to use CUDA and Ray, since this process uses neither.
    process: Any = multiprocessing.get_context("fork").Process(target=_child, args=(part, folder))
    process.start()
    try:
        process.join(most_seconds)
        if process.exitcode is None:
            return f"not finished within {most_seconds:g} s (most_seconds)"
    finally:
        _end(process)
    if process.exitcode < 0:
        return f"killed by {signal.Signals(-process.exitcode).name}"
    return _last_line(folder / "log") if process.exitcode else None


def _child(part: Part, folder: Path) -> None:
    os.setsid()  # a session of its own, with what it starts
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # and no longer than the command, should that be killed
    with open(folder / "log", "w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.argv = [part.section, f"out={folder}", *part.arguments]
    code = 1
    try:
        run_command(import_module(f"benchmarks.{part.section}").main)
        code = 0
    except SystemExit as end:
        code = 1 if end.code else 0
        if isinstance(end.code, str):  # which Python would print
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # Ray's own end can wait for ever in a fork


def _end(process: Any) -> None:
    """End a process that still runs, and all of its session: Ray's processes have groups of their own."""
    process.terminate()
    process.join(20)
    process.kill()
    process.join()
    for other in psutil.pids():
        with suppress(ProcessLookupError):
            if os.getsid(other) == process.pid:
                os.kill(other, signal.SIGKILL)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it ended without a word"


def _append_tables(parts: list[Part], out: Path) -> None:
    """Each part's own table below that of all parts."""
    with open(out / "gpu.md", "a", encoding="utf-8") as page:
        for part in parts:
            table = out / part.title / f"{part.section}.md"
            if table.exists():
                page.write(f"\n{part.title}: `{part.command}`\n\n{table.read_text(encoding='utf-8')}")


def _parity(result: Row) -> str:
    off = {row["way"]: max(row[f"{name}_off"] for name in ("ce", "kd", "gradient")) for row in result["rows"]}
    return "off by at most " + ", ".join(f"{value:.2g} ({way})" for way, value in off.items()) + _left_out(result)


def _left_out(result: Row) -> str:
    return "".join(f"; without {way}: {why}" for way, why in result["left_out"].items())


def _times(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else f"{value:.2f}"


def _step(result: Row) -> str:
    rows = [row for row in result["rows"] if row["way"] != "sft"]
    peak = max((row["peak_GiB"] for row in rows if row.get("peak_GiB")), default=None)
    times = ", ".join(f"{row['way']} {_times(row['ratio_to_sft'], row['quartiles'])}" for row in rows)
    found = f"time over plain fine-tuning: {times}" + (f"; most memory {peak:.1f} GiB" if peak else "")
    estimates = [
        f"{row['way']} {row['median_s']:.2f} s for {row['estimated_s']:.2f}, {row['peak_GiB']:.1f} GiB for "
        f"{row['estimated_GiB']:.1f}"
        for row in result["rows"]
        if row.get("estimated_s") and row["median_s"] and row["peak_GiB"]
    ]
    return found + (f"; measured, and for how much estimated: {', '.join(estimates)}" if estimates else "")


def _loss(result: Row) -> str:
    size = max((row["tokens"], row["vocabulary"]) for row in result["rows"])
    largest = [row for row in result["rows"] if (row["tokens"], row["vocabulary"]) == size]
    times = ", ".join(f"{row['loss']} {_times(row['times ours'], _without_ours(row))}" for row in largest)
    absent = f"; not installed: {', '.join(result['left_out'])}" if result["left_out"] else ""
    return f"time over ours, {size[0]} × {size[1]}: {times}{absent}"


def _without_ours(row: Row) -> str:
    return row["quartiles, ms"] if row["ms"] is None else f"{row['ms']:.3g} ms"


def _transport(result: Row) -> str:
    largest = max(row["MB"] for row in result["rows"])
    times = ", ".join(f"{row['way']} {row['ms']:.3g} ms" for row in result["rows"] if row["MB"] == largest)
    return f"{largest} MB: {times}{_left_out(result)}"


def _evaluate(result: Row) -> str:
    return "vLLM's speed over Transformers': " + ", ".join(
        f"{row['task']} {row['to_transformers']:.2f} ({row['model']})"
        for row in result["rows"]
        if row["engine"] == "vllm"
    )


def _choices(result: Row) -> str:
    ratios = [f"{row['way']} {_times(row['ratio'], row['quartiles'])}" for row in result["rows"] if row["us"] is None]
    launches = [f"{row['way']} {row['us']:.1f} µs" for row in result["rows"] if row["us"] is not None]
    return f"time over what is chosen: {', '.join(ratios + launches)}"


SUMMARIES = {
    "step": _step,
    "loss": _loss,
    "transport": _transport,
    "choices": _choices,
    "parity": _parity,
    "evaluate": _evaluate,
}

if __name__ == "__main__":
    run_command(main)
