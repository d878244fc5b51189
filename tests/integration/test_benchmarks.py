"""The benchmarks run, on shapes small enough for a test, and print what their documents are made of."""

import json
import sys
from itertools import product
from pathlib import Path

import pytest
from commands import Command
from tiny import tiny_student, tiny_teacher

from benchmarks.chats import TURNS
from benchmarks.rounding import CASES, PRECISIONS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def joined(ray_cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks that need Ray join the tests'."""
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster)


def run(module: str, *arguments: str, out: Path, warm: bool = True) -> list[dict]:
    """The rows of a benchmark; its JSON on stdout and in the folder are the same."""
    argv = [f"benchmarks.{module}", f"out={out}", *arguments]
    python = [] if warm else [sys.executable, "-m"]
    with Command([*python, *argv], cwd=ROOT, stdout=out / "stdout", warm=warm) as command:
        command.finish()
    result = json.loads((out / "stdout").read_text())
    assert result == json.loads((out / f"{module}.json").read_text())
    assert result["machine"]["device"] and (out / f"{module}.md").read_text().count("\n") == len(result["rows"]) + 2
    return result["rows"]


def test_step(tmp_path):
    """Every way of teaching takes a step; plain fine-tuning is the ratio's 1."""
    small = {"rows": 1, "micro_batches": 2, "image_tokens": 16, "text_tokens": 4, "answer_tokens": 4, "layers": 2}
    settings = [f"{name}={value}" for name, value in {**small, "hidden": 192}.items()]
    rows = run("step", "repeats=1", *settings, out=tmp_path)
    ratios = {row["way"]: row["ratio_to_sft"] for row in rows}
    assert ratios.pop("sft") == 1 and all(ratio > 0 for ratio in ratios.values())
    in_process = {"in_process", "in_process_joined"}
    assert ratios.keys() == {"full_sequence", "full_sequence_all_logits", "actor_0", "actor_1", "actor_2"} | in_process
    assert (tmp_path / "step.png").stat().st_size > 1000


def test_small_step(tmp_path):
    """Both ways take a whole step at each number of rows; the default is the ratio's 1."""
    rows = run("small_step", "repeats=1", "rows=1,3", "layers=2", "hidden=192", out=tmp_path)
    assert [(row["rows"], row["way"]) for row in rows] == [(1, "default"), (1, "ours"), (3, "default"), (3, "ours")]
    assert all((row["ratio_to_default"] == 1) == (row["way"] == "default") for row in rows)


def test_short_rows(tmp_path):
    """Both ways take a whole step at each length; the attention that is bfloat16 like all else is the ratio's 1."""
    sizes = ["tokens=8,16", "tokens_per_micro_batch=32", "layers=1", "hidden=192"]
    rows = run("short_rows", "repeats=1", *sizes, out=tmp_path)
    assert [(row["tokens"], row["way"]) for row in rows] == [(8, "bf16"), (8, "ours"), (16, "bf16"), (16, "ours")]
    assert all((row["ratio_to_bf16"] == 1) == (row["way"] == "bf16") for row in rows)


@pytest.mark.long
def test_cpu_memory(tmp_path):
    """Two processes take the same steps, with oneDNN's caches as it has them and as training does."""
    rows = run("cpu_memory", "steps=3", "rows=2", "layers=1", "hidden=192", "longest=20", out=tmp_path, warm=False)
    assert [row["way"] for row in rows] == ["default", "ours"] and rows[0]["ratio_to_default"] == 1
    assert all(row["median_s"] > 0 and row["resident_GiB"] > 0 for row in rows)
    assert (tmp_path / "cpu_memory.png").stat().st_size > 1000


def test_rounding(tmp_path):
    """A decoder equal to the teacher: whatever is donated, KD is nothing in float32 and a little in bf16."""
    tiny_teacher(folder=tmp_path / "teacher")
    rows = run("rounding", f"teacher={tmp_path / 'teacher'}", "chats=3", out=tmp_path)
    largest = {precision: max(row["kd"] for row in rows if row["precision"] == precision) for precision in PRECISIONS}
    assert len(rows) == 2 * len(CASES) and largest["fp32"] < 1e-6 < largest["bf16"] < 0.1
    assert all(row["p99"] >= row["kd"] and row["gradient"] > 0 for row in rows if row["precision"] == "bf16")


def test_earlier_turns(tmp_path):
    """The teacher computes earlier answers itself: fewer parts and less KV than by turns, and another KD."""
    tiny_student(tiny_teacher(folder=tmp_path / "teacher", seed=3), folder=tmp_path / "student")
    tiny_teacher(folder=tmp_path / "teacher")
    pair = [f"{name}={tmp_path / name}" for name in ("teacher", "student")]
    rows = run("earlier_turns", *pair, "repeats=1", "rows=1", "conversations=2", "train_steps=1", out=tmp_path)
    sft, student, teacher = rows
    assert sft["ratio_to_sft"] == 1 and student["ratio_to_sft"] > 0 and teacher["ratio_to_sft"] > 0
    assert (student["parts"], teacher["parts"]) == (TURNS, 1) and student["MiB"] > teacher["MiB"] > 0
    assert student["kd_off"] == 0 < teacher["kd_off"] and len({row["held_out_ce"] for row in rows}) == 3


def test_gpu(tmp_path, monkeypatch, ray_cluster):
    """A part that fails, or does not end, is named with its error while the others run, and the exit code says it; the
    same command again measures what is missing alone, and leaves tables, and one JSON with machine and results. Where
    memory cannot be lent (no GPU), that way alone has no figures, and the reason beside it."""
    argv = ["benchmarks.gpu", f"out={tmp_path / 'gpu'}", "size=tiny"]
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with Command([*argv, "sections=loss,transport"], cwd=ROOT, stdout=tmp_path / "stdout", warm=True) as command:
        said = command.finish(1)
    assert "failed: transport; their logs are in" in said
    loss, transport = json.loads((tmp_path / "stdout").read_text())["rows"]
    assert loss["state"] == "ok" and transport["state"] == "failed" and "no Ray cluster answers" in transport["found"]
    with Command([*argv, "sections=transport", "most_seconds=1"], cwd=ROOT, warm=True) as command:
        assert "| not finished within 1 s (most_seconds) |" in command.finish(1)
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster)
    argv.append("sections=parity,step,loss,transport,choices")
    with Command(argv, cwd=ROOT, stdout=tmp_path / "stdout", warm=True) as command:
        command.finish()
    result = json.loads((tmp_path / "gpu/gpu.json").read_text())
    parts = ["step-tiny", "loss", "transport", "choices", "parity-tiny"]
    assert [(row["part"], row["state"]) for row in result["rows"]] == [(part, "ok") for part in parts]
    assert loss in result["rows"] and result["environment"]["torch"] and result["machine"]["device"]
    found = {row["part"]: row["found"] for row in result["rows"]}
    assert all("; without cuda_ipc: " in found[part] for part in ("parity-tiny", "transport"))
    page = (tmp_path / "gpu/gpu.md").read_text()
    assert all(f"\n{part}: `python -m benchmarks." in page for part in parts)
    check_results({part: found["rows"] for part, found in result["parts"].items()})


def check_results(parts: dict[str, list[dict]]) -> None:
    """On a CPU a step is the same to the bit when computed again, and with its teacher in an actor; bf16 rounds. The
    fused loss and the naive one agree, and use measured memory; the object store carries the payload."""
    off = {row["way"]: [row[f"{name}_off"] for name in ("ce", "kd", "gradient")] for row in parts["parity-tiny"]}
    assert off["bf16 again"] == off["bf16 actor"] == [0, 0, 0] and all(value > 0 for value in off["bf16 in_process"])
    assert [row["way"] for row in parts["step-tiny"]] == ["sft", "in_process", "actor_1", "cuda_ipc_1"]
    *measured, lent = [row["ratio_to_sft"] for row in parts["step-tiny"]]
    assert None not in measured and lent is None
    losses = {row["loss"]: row for row in parts["loss"]}
    assert losses["ours"]["off"] < 1e-5 and losses["ours"]["MiB"] > 0 and losses["naive"]["times ours"] > 0
    assert "object_store" in {row["way"] for row in parts["transport"]}
    choices = {row["way"]: row for row in parts["choices"]}
    assert choices["cuDNN last"]["ratio"] == choices["frozen bf16"]["ratio"] == 1
    assert all(choices[way]["ratio"] > 0 for way in ("cuDNN first", "frozen float32"))
    assert choices["launch, in a decoder"]["us"] > choices["launch, alone"]["us"] > 0


def test_estimate(tmp_path):
    """Of a tiny pair, what is counted of steps is what the estimate says; resident memory and time are shown alone."""
    ratios = {row["what"]: row["ratio"] for row in run("estimate", "cases=tiny", out=tmp_path)}
    assert ratios["parameters"] == 1 and ratios.keys() > {"resident, MiB", "step, s"}
    for what in ("kept, MiB", "KV, MiB", "teacher, MiB", "tensors, MiB", "operations, GFLOP"):
        assert ratios[what] == pytest.approx(1, abs=0.15), what


@pytest.mark.long
def test_evaluate(tmp_path):
    """Both engines get through every task of a model that sees; Transformers is the ratio's 1."""
    tiny_student(tiny_teacher(), folder=tmp_path / "model")
    settings = ["repeats=1", "items=2", "images=1", "words=30", "new_tokens=4", "tokens_per_batch=512"]
    rows = run("evaluate", str(tmp_path / "model"), *settings, out=tmp_path)
    ratios = {(row["task"], row["engine"]): row["to_transformers"] for row in rows}
    assert ratios.keys() == set(product(("choice", "perplexity", "text", "image"), ("transformers", "vllm")))
    assert all(ratio == 1 if engine == "transformers" else ratio > 0 for (_, engine), ratio in ratios.items())
    assert all(row["items_per_s"] > 0 and row["start_s"] > 0 for row in rows)
    assert (tmp_path / "evaluate.png").stat().st_size > 1000
