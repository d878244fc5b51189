"""Memory that does not suffice, a package that is absent or a command that is ended cost only their own figures."""

import json
import multiprocessing
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch

from benchmarks import evaluate, gpu, loss, step
from benchmarks.report import Measured, markdown

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5 GiB")


def raise_full(*_: object) -> None:
    """What torch's allocator does."""
    raise FULL


@pytest.mark.parametrize("failing", ["naive", "ours"])
def test_a_loss_that_does_not_fit_has_a_row_without_numbers(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """The other losses have theirs, but for what is compared with it."""
    monkeypatch.setitem(loss.MAKERS, failing, lambda: raise_full)
    monkeypatch.setattr(loss, "peak_memory", lambda *_: 3.0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    rows = loss.compare(loss.Shape(4, 16, 8, torch.float32, "cpu"), ["naive", "ours"], repeats=1)
    by_name = {row["loss"]: row for row in rows}
    full, other = by_name.pop(failing), *by_name.values()
    assert full["ms"] is None and full["quartiles, ms"] == "out of memory"
    assert other["ms"] > 0 and other["MiB"] == 3
    assert "| out of memory |" in markdown(rows)
    assert gpu.SUMMARIES["loss"]({"rows": rows, "left_out": []}).count("out of memory") == (
        2 if failing == "ours" else 1
    )


def test_a_step_that_does_not_fit_has_a_row_without_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of its first half are dropped; other errors are raised."""
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    optimizer = torch.optim.SGD([weight])
    assert step._overflow(lambda: None, optimizer) is None and weight.grad is not None
    assert step._overflow(raise_full, optimizer) == "out of memory" and weight.grad is None and emptied
    with pytest.raises(ZeroDivisionError):
        step._overflow(lambda: 1 / 0, optimizer)  # pyrefly: ignore [bad-argument-type]
    sizes = {name: 1 for name in ("rows", "micro_batches", "image_tokens", "text_tokens", "answer_tokens")}
    steps = [Measured("in_process", 2.0, 1.0)]
    absent = {"full_sequence": "out of memory"}
    ways = ("sft", "in_process", "full_sequence")
    rows = [step._row(way, steps, sizes, absent.get(way)) | {"peak_GiB": None} for way in ways]
    assert rows[0].keys() == rows[2].keys() and rows[2]["quartiles"] == "out of memory"
    found = gpu.SUMMARIES["step"]({"rows": rows})
    assert found == "time over plain fine-tuning: in_process 2.00, full_sequence out of memory"


def test_transformers_is_measured_without_vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The summary says why there is nothing to compare with, and no plot is drawn."""
    monkeypatch.setattr(evaluate, "find_spec", lambda name: None if name == "vllm" else find_spec(name))
    assert evaluate.installed() == ["transformers"]
    rows = [{"engine": "transformers", "task": "text", "model": "x"}]
    evaluate.plot(rows, tmp_path / "evaluate.png")
    assert not list(tmp_path.iterdir())
    assert gpu.SUMMARIES["evaluate"]({"rows": rows}) == "vllm is not installed, so Transformers alone"


def test_vllm_leaves_memory_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are on one GPU, of which vLLM, taken to be alone, would reserve nine tenths."""
    shares = []
    monkeypatch.setattr(evaluate.VllmEngine, "__init__", lambda *_, gpu_share=1.0: shares.append(gpu_share))
    evaluate.TimedEngine("vllm", "model", 64)
    assert shares == [0.5]


def test_a_command_that_is_ended_leaves_what_it_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As by SIGTERM, when a batch system's time is over."""

    def measured(part: gpu.Part, _: gpu.GpuConfig) -> tuple[dict, dict]:
        if part.section == "transport":
            raise SystemExit(143)
        return {"part": part.title, "state": "ok", "seconds": 1.0, "found": "all"}, {"rows": [1]}

    monkeypatch.setattr(gpu, "measured", measured)
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit):
        gpu.main(["size=tiny", "sections=loss,transport", f"out={tmp_path}"])
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"] == {"loss": {"rows": [1]}}


@pytest.mark.slow
def test_a_command_that_is_killed_leaves_no_part_behind(tmp_path: Path) -> None:
    """As at the end of a machine's lease: what still computed would disturb the command that measures the rest."""
    endless = gpu.Part("loss", "", ("repeats=1000000", "tokens=8"))
    command = multiprocessing.get_context("fork").Process(target=gpu._run, args=(endless, tmp_path / "loss", 600))
    command.start()
    assert command.pid is not None
    while not (parts := psutil.Process(command.pid).children()) or not (tmp_path / "loss/log").exists():
        time.sleep(0.01)
    command.kill()
    try:
        assert not psutil.wait_procs(parts, timeout=60)[1]
    finally:
        for part in parts:
            with suppress(psutil.NoSuchProcess):
                part.kill()


def test_memory_that_a_machine_is_given_later_measures_nothing_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A part is measured again where the source, a package or the device is another one."""
    environment, ran = {"memory": "16 GiB", "torch": "1"}, []

    def run(part: gpu.Part, folder: Path, _: float) -> None:
        ran.append(part)
        folder.mkdir(exist_ok=True)
        (folder / "loss.json").write_text('{"rows": [], "left_out": []}')

    monkeypatch.setattr(gpu, "_run", run)
    monkeypatch.setattr(gpu, "describe_environment", lambda: environment)
    monkeypatch.setitem(gpu.SUMMARIES, "loss", lambda result: "measured")
    for changed, times in (({}, 1), ({"memory": "64 GiB"}, 1), ({"torch": "2"}, 2)):
        environment |= changed
        row, _ = gpu.measured(gpu.Part("loss", "", ()), gpu.GpuConfig(out=tmp_path))
        assert row["found"] == "measured" and len(ran) == times
