"""Sharded and compiled training gives what plain training gives, whatever the workers have to do."""

import shutil
import threading
import time

import pytest
import torch
import torch.distributed as dist
from parallelrun import Steps, in_workers
from safetensors.torch import load_file
from saved import save_checkpoint
from tinyrun import config
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForImageTextToText

from lingu_ray.export import export as export_checkpoint
from lingu_ray.runtime import trainer
from lingu_ray.runtime.checkpoints import checkpoint_writer
from lingu_ray.runtime.checkpoints.checkpoint import CheckpointState, checkpoints
from lingu_ray.runtime.checkpoints.checkpoint_writer import CheckpointWriter
from lingu_ray.runtime.checkpoints.contents import load_checkpoint, saved_tensors
from lingu_ray.runtime.run_folder.records import read_records
from lingu_ray.runtime.training import prepare as preparing
from lingu_ray.runtime.training import sharding
from lingu_ray.runtime.training.frozen import place
from lingu_ray.runtime.training.sharding import gather_full, unsharded

pytestmark = pytest.mark.slow

LORA = {"rank": 4, "targets": ["q_proj", "down_proj"]}
RUNS = {
    "ddp": {},
    "fsdp2": {"parallelism": "fsdp2"},
    "checkpointing": {"parallelism": "fsdp2", "gradient_checkpointing": True},
    "lora": {"parallelism": "fsdp2", "lora": LORA, "gradient_checkpointing": True},
    "decoder_alone": {"parallelism": "fsdp2", "learning_rates": {"vision": 0, "projector": 0, "decoder": 1e-3}},
    "bf16": {"parallelism": "fsdp2", "precision": "bf16"},
}
COMPILED = {"parallelism": "fsdp2", "compile": True, "gradient_checkpointing": True}
SAVED = ("ddp", "fsdp2", "lora", "decoder_alone")
"""Those of which checkpoints are written."""
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
        keep(steps, 2, folder / name)
        assert_gathered_as_torch_does(steps)
        if name == "bf16":
            assert_gathered_in_bf16(steps)
        if name in SAVED:
            for layout in ("whole", "sharded"):
                steps.save(folder / f"{name}-{layout}", 2, layout)
                assert_restored_exactly(steps, Steps(data, **train), folder / f"{name}-{layout}")
        if name == "fsdp2":
            assert_complete_when_all_have_written(steps, folder / "waiting")
            assert_none_leaves_before_it_is_put(steps, folder)
            assert_whole_where_storage_is_not_shared(steps, folder)
            keep(steps, 1, folder / "third")
        if name == "lora":
            steps.export(folder / "export")
    assert_any_number_of_rows_is_restored(folder / "uneven")
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


def assert_gathered_in_bf16(steps):
    """What layers are given by the other workers has two bytes a weight; the norms' weights stay float32."""
    with unsharded(steps.student.decoder):
        kinds = {(p.ndim, p.dtype) for p in steps.student.layers.parameters()}
    assert kinds == {(2, torch.bfloat16), (1, torch.float32)}


def assert_restored_exactly(saved, fresh, folder):
    """What a fresh worker loads has the bits of what was saved."""
    fresh.load(folder)
    (weights, moments), (restored, restored_moments) = saved.state(), fresh.state()
    assert_equal_tensors(weights, restored)
    assert moments.keys() == restored_moments.keys()
    for name, kept in moments.items():
        assert_equal_tensors(kept, restored_moments[name])


def assert_any_number_of_rows_is_restored(folder):
    """Two workers share five rows, and one row, of which the second has none."""

    def trained(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))
        for layer in model:
            fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        return model, optimizer

    saved, restored = trained(0), trained(1)
    save_checkpoint(folder, *saved, CheckpointState(1, None), 1, "sharded")
    dist.barrier()
    load_checkpoint(folder, *restored)
    for ours, theirs in zip(saved_tensors(*saved).values(), saved_tensors(*restored).values(), strict=True):
        assert_equal_tensors(gather_full(ours, True), gather_full(theirs, True))


def assert_complete_when_all_have_written(steps, folder):
    """While the second worker still writes, there is no checkpoint for any of them, however long the first waits."""
    gate, write = threading.Event(), checkpoint_writer.write_pieces
    if steps.rank == 1:
        checkpoint_writer.write_pieces = lambda *arguments: gate.wait() and write(*arguments)
    writer = CheckpointWriter(folder, steps.student.model, steps.optimizer, "sharded", 1, lambda path: None)
    writer.save(CheckpointState(2, None))
    if steps.rank == 0:
        writer._threads.submit(lambda: None).result()  # its own part is written
    for _ in range(3):
        writer.poll()
        assert not checkpoints(folder)
    dist.barrier()
    gate.set()
    writer.wait()
    dist.barrier()
    assert [state.step for _, state in checkpoints(folder)] == [2]
    checkpoint_writer.write_pieces = write


def assert_none_leaves_before_it_is_put(steps, folder):
    """A worker that ends, by an error for instance, ends the others: it waits for what follows a checkpoint."""

    def put(path):
        time.sleep(0.5)
        (folder / "put").touch()

    writer = CheckpointWriter(folder / "putting", steps.student.model, steps.optimizer, "sharded", 1, put)
    writer.save(CheckpointState(2, None))
    writer.wait()
    assert (folder / "put").exists()


def assert_whole_where_storage_is_not_shared(steps, folder):
    """Workers that do not see the first one's folder leave all of the writing to it."""
    steps.save(folder / f"apart-{steps.rank}", 2, "sharded")
    dist.barrier()
    saved, whole = (folder / name / "step-00000002" for name in ("apart-0", "fsdp2-whole"))
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (saved / file).read_bytes() == (whole / file).read_bytes()
    assert not list(folder.glob("apart-1/*"))


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


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_compiled_layers_give_the_same(data, backend):
    """Compiled decoder layers give eager's losses and gradients, with gradient checkpointing; KV is captured anew."""
    eager = Steps(data).run(2)
    with torch.compiler.set_stance(force_backend=backend):
        compiled = Steps(data, compile=True, gradient_checkpointing=True).run(2)
    assert compiled.kd[1] > 100 * compiled.kd[0]  # the KV of the second step is that of changed weights
    assert_same(compiled, eager, atol=1e-5, drift=1e-3)


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "checkpointing", "lora", "decoder_alone"])
def test_two_workers_do_what_one_does(data, folder, name):
    """Two workers, one with a text micro-batch, one with two of pictures: the gradients and weights of one worker."""
    ours, alone = outcome(folder / f"{name}.pt"), Steps(data, **RUNS[name] | PLAIN).run(2)
    assert ours.batches == alone.batches == [3, 3]
    assert_same(ours, alone)


@pytest.mark.long
def test_two_workers_compile_what_one_does(data, tmp_path):
    """And so they do where layers are compiled, sharded and computed again in the backward pass."""
    in_workers(leave_compiled, data, tmp_path)
    ours, alone = outcome(tmp_path / "compiled.pt"), Steps(data, **COMPILED | PLAIN).run(2)
    assert ours.batches == alone.batches == [3, 3]
    assert_same(ours, alone, atol=1e-5, drift=1e-3)


def leave_compiled(data, folder):
    """A compiled run as one of two workers."""
    with torch.compiler.set_stance(force_backend="aot_eager"):  # all of the compiler but its slow C++
        keep(Steps(data, **COMPILED), 2, folder / "compiled")


def test_sharded_bf16(data, folder):
    """Under autocast, sharded layers give the losses of whole ones up to bf16's rounding."""
    ours, alone = outcome(folder / "bf16.pt"), Steps(data, precision="bf16").run(2)
    assert ours.loss == pytest.approx(alone.loss, rel=1e-2) and ours.norm == pytest.approx(alone.norm, rel=2e-2)
    assert all(tensor.dtype == torch.float32 for tensor in ours.weights.values() if tensor.is_floating_point())


def test_shards_of_frozen_weights_are_held_in_bf16(data, tmp_path):
    """Of a student published in bf16 they take half of the memory, and losses, answers and weights are the same to the
    bit as with shards in float32; a checkpoint knows them again, and the export has what was published."""
    published = tmp_path / "published"
    shutil.copytree(data, published)
    student = AutoModelForImageTextToText.from_pretrained(data / "student", dtype=torch.bfloat16)
    student.save_pretrained(published / "student")
    in_workers(leave_frozen_in_bf16, published, tmp_path)
    ours, theirs = (torch.load(tmp_path / f"{name}.pt", weights_only=False) for name in ("held", "float32"))
    assert (ours.loss, ours.kd, ours.norm, ours.answers) == (theirs.loss, theirs.kd, theirs.norm, theirs.answers)
    assert all(tensor.equal(theirs.gradients[name]) for name, tensor in ours.gradients.items()) and ours.gradients
    assert all(tensor.float().equal(theirs.weights[name].float()) for name, tensor in ours.weights.items())
    export = load_file(tmp_path / "export" / "model.safetensors")
    start = load_file(published / "student" / "model.safetensors")
    name = "model.text_model.layers.1.self_attn.k_proj.weight"  # has no adapter
    assert export[name].equal(start[name].float())


def leave_frozen_in_bf16(data, folder):
    """Runs with adapters as one of two workers, whose frozen shards are bf16, and float32."""
    train = RUNS["lora"] | {"precision": "bf16"}
    steps = Steps(data, **train)
    frozen = [p for p in steps.student.layers.parameters() if isinstance(p, DTensor) and not p.requires_grad]
    assert frozen and {p.to_local().dtype for p in frozen} == {torch.bfloat16}
    keep(steps, 2, folder / "held")
    steps.save(folder / "checkpoints", 2, "sharded")
    Steps(data, **train).load(folder / "checkpoints")
    steps.export(folder / "export")
    with pytest.MonkeyPatch.context() as patched:
        for module in (preparing, sharding):
            patched.setattr(module, "place", lambda module, device, in_bf16: place(module, device, []))
        steps = Steps(data, **train)
    assert {p.dtype for p in steps.student.model.parameters()} == {torch.float32}
    keep(steps, 2, folder / "float32")


def test_checkpoints_go_on_with_other_workers_and_parallelism(data, folder):
    """Two sharded workers resume from one worker's checkpoint, and one from theirs, as if nothing had changed."""
    alone = outcome(folder / "one.pt")
    assert_same(outcome(folder / "third.pt"), alone)
    assert_same(outcome(folder / "resumed.pt"), alone)
    back = Steps(data)
    back.load(folder / "fsdp2-sharded")
    saved = load_file(folder / "fsdp2-whole" / "step-00000002" / "model.safetensors")
    assert_equal_tensors({name: tensor.clone() for name, tensor in back.state()[0].items()}, saved)
    assert_same(back.run(1), alone)
    written, theirs = (
        load_file(next((folder / name).glob("step-*/model.safetensors"))) for name in ("from-one", "fsdp2-whole")
    )
    assert {n: t.shape for n, t in written.items()} == {n: t.shape for n, t in theirs.items()}


@pytest.mark.parametrize("name", SAVED)
def test_pieces_are_the_whole(data, folder, name):
    """What two workers write in pieces, each about half of the bytes, is read by one worker as what one has written, to
    the bit: weights and optimizer."""
    one, other = Steps(data, **RUNS[name] | PLAIN), Steps(data, **RUNS[name] | PLAIN)
    one.load(folder / f"{name}-whole")
    other.load(folder / f"{name}-sharded")
    (weights, moments), (theirs, their_moments) = one.state(), other.state()
    assert_equal_tensors(weights, theirs)
    assert moments.keys() == their_moments.keys() and moments
    for parameter, kept in moments.items():
        assert_equal_tensors(kept, their_moments[parameter])
    files = sorted((folder / f"{name}-sharded").glob("step-*/*"))
    kinds = [f"{kind}-0000{part}-of-00002.safetensors" for kind in ("model", "optimizer") for part in (1, 2)]
    assert [file.name for file in files] == [*kinds, "state.json"]
    for first, second in (files[:2], files[2:4]):
        assert 0.8 < first.stat().st_size / second.stat().st_size < 1.25


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
    """A whole run on Ray with two sharded workers, adapters and sampled answers lowers the loss and is exported; so is
    its checkpoint, of which each worker wrote a part, by one process, to the bit.
    """
    train = {"parallelism": "fsdp2", "lora": {"rank": 8}, "steps": 4, "learning_rates": {"decoder": 1e-2}}
    train |= {"checkpoint": "sharded"}
    run = config(data, tmp_path, train=train, distill={"on_policy": 0.5, "sampled_tokens": 8}, ray={"num_workers": 2})
    export = trainer.run(run)
    steps = [r for r in read_records(run.run_dir / "metrics.jsonl") if "loss" in r]
    assert len(steps) == 4 and steps[-1]["ce"] < steps[0]["ce"]
    assert len(read_records(run.run_dir / "samples.jsonl")) == 2
    student = AutoModelForImageTextToText.from_pretrained(data / "student")
    assert load_file(export / "model.safetensors").keys() == load_file(data / "student" / "model.safetensors").keys()
    assert AutoModelForImageTextToText.from_pretrained(export).num_parameters() == student.num_parameters()
    assert len(list((run.run_dir / "checkpoints" / "step-00000004").glob("model-*.safetensors"))) == 2
    again = export_checkpoint(run.run_dir)
    assert (again / "model.safetensors").read_bytes() == (export / "model.safetensors").read_bytes()
