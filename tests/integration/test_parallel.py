"""Sharded and compiled training gives what plain training gives, whatever the workers have to do."""

import pytest
import torch
import torch.distributed as dist
from parallelrun import Steps, in_workers
from safetensors.torch import load_file
from tinyrun import config
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)
from transformers import AutoModelForImageTextToText

from lingu_ray.runtime import trainer
from lingu_ray.runtime.records import read_records

pytestmark = pytest.mark.slow

LORA = {"rank": 4, "targets": ["q_proj", "down_proj"]}
RUNS = {
    "ddp": {},
    "fsdp2": {"parallelism": "fsdp2"},
    "checkpointing": {"parallelism": "fsdp2", "gradient_checkpointing": True},
    "lora": {"parallelism": "fsdp2", "lora": LORA, "gradient_checkpointing": True},
    "decoder_alone": {"parallelism": "fsdp2", "learning_rates": {"vision": 0, "projector": 0, "decoder": 1e-3}},
    "bf16": {"parallelism": "fsdp2", "precision": "bf16"},
    "compiled": {"parallelism": "fsdp2", "compile": True, "gradient_checkpointing": True},
}
PLAIN = {"parallelism": "ddp", "gradient_checkpointing": False, "compile": False}


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """What two workers left, and one before them whose checkpoint they went on from."""
    folder = tmp_path_factory.mktemp("outcomes")
    alone = Steps(data)
    alone.run(2)
    alone.save(folder / "from-one", 2)
    torch.save(alone.run(1), folder / "one.pt")
    in_workers(leave_outcomes, data, folder)
    return folder


def leave_outcomes(data, folder):
    """Every run of `RUNS` as one of two workers; checkpoints and an export of sharded ones."""
    for name, train in RUNS.items():
        steps = Steps(data, **train)
        with torch.compiler.set_stance(force_backend="aot_eager"):  # all of the compiler but its slow C++
            keep(steps, 2, folder / name)
        assert_gathered_as_torch_does(steps)
        if name in ("fsdp2", "lora", "decoder_alone"):
            steps.save(folder / f"{name}-saved", 2)
            assert_restored_exactly(steps, Steps(data, **train), folder / f"{name}-saved")
        if name == "fsdp2":
            keep(steps, 1, folder / "third")
        if name == "lora":
            steps.export(folder / "export")
    resumed = Steps(data, **RUNS["fsdp2"])
    resumed.load(folder / "from-one")
    if dist.get_rank() == 0:
        assert_equal_tensors(resumed.state()[0], load_file(folder / "from-one" / "step-00000002" / "model.safetensors"))
    else:
        resumed.state()
    keep(resumed, 1, folder / "resumed")


def keep(steps, count, path):
    """Run the steps; the first worker writes their outcome."""
    outcome = steps.run(count)
    if steps.rank == 0:
        torch.save(outcome, path.with_suffix(".pt"))


def assert_equal_tensors(ours, theirs):
    """The same names, dtypes and bits."""
    assert ours.keys() == theirs.keys()
    assert all(ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours)


def assert_gathered_as_torch_does(steps):
    """Weights and moments that a checkpoint holds are those of PyTorch's distributed state dicts; tied ones once."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, moments = steps.state()
    theirs = get_model_state_dict(steps.student.model, options=options)
    their_moments = get_optimizer_state_dict(steps.student.model, steps.optimizer, options=options)
    if steps.rank == 0:
        assert theirs.keys() - weights.keys() == {"lm_head.weight"}
        assert_equal_tensors(weights, {name: theirs[name] for name in weights})
        assert moments.keys() == their_moments["state"].keys()
        for name, kept in moments.items():
            assert_equal_tensors(kept, their_moments["state"][name])


def assert_restored_exactly(saved, fresh, folder):
    """What a fresh worker loads has the bits of what was saved."""
    fresh.load(folder)
    (weights, moments), (restored, restored_moments) = saved.state(), fresh.state()
    assert_equal_tensors(weights, restored)
    assert moments.keys() == restored_moments.keys()
    for name, kept in moments.items():
        assert_equal_tensors(kept, restored_moments[name])


def outcome(path):
    """An outcome that was kept."""
    return torch.load(path, weights_only=False)


def assert_same(ours, theirs, rtol=1e-4, atol=1e-6, drift=1e-5):
    """Equal losses, norms, validation, answers, gradients and weights; `drift`: what weights may be apart."""
    assert ours.loss == pytest.approx(theirs.loss, rel=rtol) and ours.norm == pytest.approx(theirs.norm, rel=rtol)
    assert ours.kd == pytest.approx(theirs.kd, rel=rtol, abs=1e-5) and ours.kd[-1] > 0.01
    assert ours.validation_ce == pytest.approx(theirs.validation_ce, rel=rtol)
    assert ours.answers == theirs.answers
    for kind, tolerance in (("gradients", atol), ("weights", drift)):
        a, b = getattr(ours, kind), getattr(theirs, kind)
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=10 * rtol, atol=tolerance, msg=f"{kind} of {name}")


def test_compiled_layers_give_the_same(data):
    """Compiled decoder layers give eager's losses and gradients, with gradient checkpointing; KV is captured anew."""
    eager = Steps(data).run(2)
    compiled = Steps(data, compile=True, gradient_checkpointing=True).run(2)
    assert compiled.kd[1] > 100 * compiled.kd[0]  # the KV of the second step is that of changed weights
    assert_same(compiled, eager, atol=1e-5, drift=1e-3)


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "checkpointing", "lora", "decoder_alone", "compiled"])
def test_two_workers_do_what_one_does(data, folder, name):
    """Two workers, one with a text micro-batch, one with two of pictures: the gradients and weights of one worker."""
    ours, alone = outcome(folder / f"{name}.pt"), Steps(data, **RUNS[name] | PLAIN).run(2)
    assert ours.batches == alone.batches == [3, 3]
    drift = 1e-3 if name == "compiled" else 1e-5
    assert_same(ours, alone, atol=1e-5 if name == "compiled" else 1e-6, drift=drift)


def test_sharded_bf16(data, folder):
    """Under autocast, sharded layers give the losses of whole ones up to bf16's rounding."""
    ours, alone = outcome(folder / "bf16.pt"), Steps(data, precision="bf16").run(2)
    assert ours.loss == pytest.approx(alone.loss, rel=1e-2) and ours.norm == pytest.approx(alone.norm, rel=2e-2)
    assert all(tensor.dtype == torch.float32 for tensor in ours.weights.values() if tensor.is_floating_point())


def test_checkpoints_go_on_with_other_workers_and_parallelism(data, folder):
    """Two sharded workers resume from one worker's checkpoint, and one from theirs, as if nothing had changed."""
    alone = outcome(folder / "one.pt")
    assert_same(outcome(folder / "third.pt"), alone)
    assert_same(outcome(folder / "resumed.pt"), alone)
    back = Steps(data)
    back.load(folder / "fsdp2-saved")
    saved = load_file(folder / "fsdp2-saved" / "step-00000002" / "model.safetensors")
    assert_equal_tensors({name: tensor.clone() for name, tensor in back.state()[0].items()}, saved)
    assert_same(back.run(1), alone)
    written, theirs = (
        load_file(next((folder / name).glob("step-*/model.safetensors"))) for name in ("from-one", "fsdp2-saved")
    )
    assert {n: t.shape for n, t in written.items()} == {n: t.shape for n, t in theirs.items()}


def test_sharded_adapters_are_exported_merged(data, folder):
    """The export of sharded adapters has the student's names, and the weights of the run with them merged in."""
    export, student = (
        AutoModelForImageTextToText.from_pretrained(path) for path in (folder / "export", data / "student")
    )
    merged, start = export.state_dict(), student.state_dict()
    assert merged.keys() == start.keys() and type(export) is type(student)
    weights = outcome(folder / "lora.pt").weights
    layer = "model.text_model.layers.1.mlp.down_proj"
    delta = weights[f"{layer}.lora_B.default.weight"] @ weights[f"{layer}.lora_A.default.weight"]
    torch.testing.assert_close(merged[f"{layer}.weight"], start[f"{layer}.weight"] + 32 / 4 * delta)
    assert not torch.equal(merged[f"{layer}.weight"], start[f"{layer}.weight"])
    assert torch.equal(merged["lm_head.weight"], start["lm_head.weight"])


def test_a_run_with_sharded_adapters(ray_cluster, data, tmp_path):
    """A whole run on Ray with two sharded workers, adapters and sampled answers lowers the loss and is exported."""
    train = {"parallelism": "fsdp2", "lora": {"rank": 8}, "steps": 4, "learning_rates": {"decoder": 1e-2}}
    run = config(data, tmp_path, train=train, distill={"on_policy": 0.5, "sampled_tokens": 8}, ray={"num_workers": 2})
    export = trainer.run(run)
    steps = [r for r in read_records(run.run_dir / "metrics.jsonl") if "loss" in r]
    assert len(steps) == 4 and steps[-1]["ce"] < steps[0]["ce"]
    assert len(read_records(run.run_dir / "samples.jsonl")) == 2
    student = AutoModelForImageTextToText.from_pretrained(data / "student")
    assert load_file(export / "model.safetensors").keys() == load_file(data / "student" / "model.safetensors").keys()
    assert AutoModelForImageTextToText.from_pretrained(export).num_parameters() == student.num_parameters()
