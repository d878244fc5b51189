"""An estimate as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from lingu_ray.config.layout import text_width, wrapped
from lingu_ray.cost.devices import GIB
from lingu_ray.cost.estimate import FREE, Estimate
from lingu_ray.cost.memory import Process
from lingu_ray.cost.models import count
from lingu_ray.cost.workload import kv_transport, workers_per_device

_COLUMN = 46


def lines(estimate: Estimate) -> Iterator[str]:
    """The lines that the command prints, each as soon as it is known."""
    for part in (_run, _memory, _verdict):
        yield from part(estimate)
        yield ""
    yield from _time(estimate)


def _run(estimate: Estimate) -> Iterator[str]:
    """The assumed rows, the micro-batches made of them, and the models' parameters."""
    load, models = estimate.load, estimate.models
    yield from _line(
        "rows",
        f"{load.image_tokens} image + {load.text_tokens} text + {load.answer_tokens} answer tokens, assumed "
        f"(image_tokens=, text_tokens=, answer_tokens=); {load.distilled:.0%} distilled",
    )
    yield from _line(
        "step",
        f"{load.rows_of_step} rows a worker in {load.micro_batches} micro-batch{'es' * (load.micro_batches > 1)} of up "
        f"to {load.rows}, "
        f"{'bf16' if load.bf16 else 'fp32'}",
    )
    groups = ", ".join(f"{name} {_millions(number)}" for name, number in models.parameters.items())
    trained = _millions(sum(models.trained.values()))
    teacher = f"; teacher {_millions(count(models.teacher))}" if models.teacher is not None else ""
    yield from _line("weights", f"student {groups}, trained {trained}{teacher}")


def _memory(estimate: Estimate) -> Iterator[str]:
    """A table of the processes' items."""
    processes = (*estimate.training, *((estimate.engine,) if estimate.engine else ()))
    yield f"{'process':12}{'what':{_COLUMN}}{'GiB':>9}"
    for process in processes:
        yield from _process(process)


def _process(process: Process) -> Iterator[str]:
    for number, item in enumerate(process.items):
        yield f"{process.name if number == 0 else '':12}{item.what:{_COLUMN}}{item.bytes / GIB:9.2f}"
    yield f"{'':12}{'total':{_COLUMN}}{process.bytes / GIB:9.2f}"


def _verdict(estimate: Estimate) -> Iterator[str]:
    """Whether the run fits; if not, which single settings would take less."""
    device = estimate.device
    what = f"one {device.name}" if device.is_gpu else "this machine"
    size = f"{estimate.needed / GIB:.2f} of {device.memory / GIB:.0f} GiB of {what}"
    if estimate.fits:
        yield from _line("fits", f"{size}, of which {FREE:.0%} stay free")
        return
    changes = list(estimate.changes())
    rest = "Each of these alone:" if changes else "No single setting takes less."
    yield from _line("too large", f"{size}, of which {FREE:.0%} stay free. {rest}")
    for words, changed in changes:
        yield f"{'':12}{words:{_COLUMN}}{changed.needed / GIB:9.2f}{'  fits' if changed.fits else ''}"


def _time(estimate: Estimate) -> Iterator[str]:
    """Seconds of a step and the shares of what takes them, hours of the run, bytes of KV."""
    time, train, device = estimate.time, estimate.config.train, estimate.device
    shares = {name: seconds / time.total for name, seconds in time.seconds.items()}
    parts = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= 0.005)
    yield from _line("step", f"{time.total:.3g} s: {parts}")
    control = ", a control about as much" if estimate.config.controls else ""
    run = f"{train.steps} steps: {_duration(train.steps * time.total)}{control}"
    yield from _line("run", f"{run}; without corpus, validation, evaluation")
    if time.kv:
        way = f"by {name}" if (name := kv_transport(estimate.config)) else "in its memory"
        yield from _line("KV", f"{time.kv / 1e6:.4g} MB a step and worker, {way}")
    if time.pictures:
        yield from _line("pictures", f"{time.pictures:.3g} s of processor time a step and worker, in threads")
    rate = device.rate(estimate.load.bf16) / 1e12
    origin = "assumed from its vendor's figures" if device.is_gpu else "measured now"
    workers = workers_per_device(estimate.config.ray, device.is_gpu, estimate.config.ray.min_workers)
    shared = f", shared by {workers} workers" if workers > 1 else ""
    yield from _line("rates", f"{rate:.3g} TFLOP/s, {device.bandwidth / 1e9:.4g} GB/s, {origin}{shared}")


def _line(name: str, text: str) -> list[str]:
    return wrapped(f"{name:12}", text, text_width())


def _millions(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number < 1e9 else f"{number / 1e9:.2f} B"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
