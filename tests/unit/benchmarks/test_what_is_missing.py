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
from benchmarks.report import Measured, markdown, require_all
from lingu_ray.cost.devices import GPUS
from lingu_ray.errors import UserError

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
    found = gpu.SUMMARIES["loss"]({"rows": rows, "left_out": []})
    assert found.count("out of memory") == 1 and (" ms" in found) is (failing == "ours")


def test_a_step_that_does_not_fit_has_a_row_without_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of its first half are dropped; of one that fails, the row has the error, and the command ends by it."""
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    optimizer = torch.optim.SGD([weight])
    assert step._obstacle(lambda: None, optimizer) is None and weight.grad is not None
    assert step._obstacle(raise_full, optimizer) == "out of memory" and weight.grad is None and emptied
    failed = step._obstacle(lambda: 1 / 0, optimizer)  # pyrefly: ignore [bad-argument-type]
    assert failed == "fails: ZeroDivisionError: division by zero"
    require_all({"actor_1": "out of memory"})
    with pytest.raises(UserError, match=r"^in_process fails: ZeroDivisionError: division by zero$"):
        require_all({"actor_1": "out of memory", "in_process": failed})
    sizes = {name: 1 for name in ("rows", "micro_batches", "image_tokens", "text_tokens", "answer_tokens")}
    steps = [Measured("in_process", 2.0, 1.0)]
    absent = {"full_sequence": "out of memory"}
    ways = ("sft", "in_process", "full_sequence")
    rows = [step._row(way, steps, sizes, absent.get(way)) | {"peak_GiB": None} for way in ways]
    assert rows[0].keys() == rows[2].keys() and rows[2]["quartiles"] == "out of memory"
    found = gpu.SUMMARIES["step"]({"rows": rows})
    assert found == "time over plain fine-tuning: in_process 2.00, full_sequence out of memory"


def test_a_loss_that_fails_has_a_row_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of a library which wants another one, or whose kernel does not compile: the others are measured."""
    monkeypatch.setitem(loss.MAKERS, "liger", lambda: [][0])
    monkeypatch.setitem(loss.MAKERS, "trl_gkd", lambda: lambda _: 1 / 0)
    monkeypatch.setattr(loss, "peak_memory", lambda *_: 3.0)
    names = ["naive", "liger", "trl_gkd", "ours"]
    rows = loss.compare(loss.Shape(4, 16, 8, torch.float32, "cpu"), names, repeats=1)
    assert [row["ms"] is None for row in rows] == [False, True, True, False]
    assert rows[1]["quartiles, ms"] == "fails: IndexError: list index out of range"
    assert rows[2]["quartiles, ms"] == "fails: ZeroDivisionError: division by zero"
    assert "liger fails: IndexError" in gpu.SUMMARIES["loss"]({"rows": rows, "left_out": []})


def test_the_estimate_stands_beside_a_step() -> None:
    """For each way that a run has, by the steps' own rows; and the summary has both."""
    options = step.StepConfig(pair="tiny", rows=2, micro_batches=2, image_tokens=4, text_tokens=4, answer_tokens=4)
    found = {figures.name: figures.columns for figures in step.estimates(options.recorded, GPUS["h200"])}
    assert found.keys() == {"sft", *options.ways} - {"full_sequence", "full_sequence_all_logits"}
    seconds = {name: columns["estimated_s"] for name, columns in found.items()}
    assert 0 < seconds["sft"] < seconds["in_process"] and seconds["sft"] < seconds["actor_1"]
    assert found["actor_0"]["estimated_GiB"] < found["actor_1"]["estimated_GiB"] < 0.1
    row = {"way": "sft", "ratio_to_sft": 1.0, "median_s": 0.5, "peak_GiB": 2.0} | {
        "estimated_s": 0.4,
        "estimated_GiB": 3.0,
    }
    assert "sft 0.50 s for 0.40, 2.0 GiB for 3.0" in gpu.SUMMARIES["step"]({"rows": [row]})


def test_engines_are_compared_where_vllm_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Transformers alone has nothing beside it, so its minutes of a lent GPU are left out, and a line says so."""
    monkeypatch.setattr(gpu, "find_spec", lambda _: None)
    ran: list[str] = []

    def measured(part: gpu.Part, _: gpu.GpuConfig) -> tuple[dict, None]:
        ran.append(part.section)
        return {"part": part.title, "state": "ok", "seconds": 1.0, "found": "all"}, None

    monkeypatch.setattr(gpu, "measured", measured)
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)
    gpu.main(["size=tiny", "sections=evaluate,transport", f"out={tmp_path}"])
    assert ran == ["transport"] and "evaluate: left out, vllm is not installed" in capsys.readouterr().err


def test_transformers_is_measured_without_vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By its own command; no plot is drawn."""
    monkeypatch.setattr(evaluate, "find_spec", lambda name: None if name == "vllm" else find_spec(name))
    assert evaluate.installed() == ["transformers"]
    rows = [{"engine": "transformers", "task": "text", "model": "x"}]
    evaluate.plot(rows, tmp_path / "evaluate.png")
    assert not list(tmp_path.iterdir())


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
