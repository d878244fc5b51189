"""Checkpoints in the background: the state at `save` is what is written, and it counts when all of it is there."""

import os
import signal
import threading
from dataclasses import replace

import pytest
import torch
from limits import full_disk
from pretended_gpu import CUDA, PretendedGpu
from saved import save_checkpoint
from torch import nn

from lingu_ray.errors import UserError
from lingu_ray.runtime.checkpoints import checkpoint_writer
from lingu_ray.runtime.checkpoints.checkpoint import CheckpointState, checkpoints
from lingu_ray.runtime.checkpoints.checkpoint_writer import CheckpointWriter
from lingu_ray.runtime.checkpoints.contents import load_checkpoint


def trained(seed=0):
    """A small model, and an AdamW that has stepped."""
    torch.manual_seed(seed)
    model = nn.Linear(4, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step(model, optimizer)
    return model, optimizer


def step(model, optimizer):
    """One step of the optimizer."""
    model(torch.ones(4)).square().sum().backward()
    optimizer.step()


def steps(folder):
    """Steps of the complete checkpoints."""
    return [state.step for _, state in checkpoints(folder)]


@pytest.fixture
def gate(monkeypatch):
    """Files are written once this is set."""
    gate, write = threading.Event(), checkpoint_writer.write_pieces

    def write_behind_gate(*arguments):
        assert gate.wait(60)
        write(*arguments)

    monkeypatch.setattr(checkpoint_writer, "write_pieces", write_behind_gate)
    return gate


@pytest.mark.parametrize(
    ("layout", "largest", "in_background"),
    [("whole", 0, False), ("auto", 0, True), ("auto", 1 << 20, False), ("sharded", 1 << 20, True)],
)
def test_layout_by_setting_and_size(tmp_path, monkeypatch, layout, largest, in_background):
    """The setting decides, or the size of the checkpoint."""
    monkeypatch.setattr(checkpoint_writer, "WHOLE_UP_TO", largest)
    assert CheckpointWriter(tmp_path, *trained(), layout, 1, print).in_background is in_background


def test_records_are_on_the_disk_before_the_checkpoint_of_their_steps(tmp_path, monkeypatch):
    """After a power cut no step is in a checkpoint and not in the metrics: they are flushed before it has its name."""
    flushed, flush = [], os.fsync

    def note(descriptor):
        flushed.append((os.readlink(f"/proc/self/fd/{descriptor}"), steps(tmp_path)))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    metrics, none = tmp_path / "metrics.jsonl", tmp_path / "samples.jsonl"
    metrics.write_text("{}")
    writer = CheckpointWriter(tmp_path, *trained(), "whole", 1, lambda path: None, (metrics, none))
    writer.save(CheckpointState(1, None))
    assert flushed[0] == (str(metrics), []) and steps(tmp_path) == [1]


def test_training_goes_on_while_the_background_writes(tmp_path, gate):
    """The files are those, to the bit, that are written while training waits, however the weights have changed since;
    they are a checkpoint at the first poll after all is written. Then, and once, its follower is told."""
    model, optimizer = trained()
    told = []
    writer = CheckpointWriter(tmp_path / "ours", model, optimizer, "sharded", 1, told.append)
    writer.save(CheckpointState(1, None))
    copy, copy_optimizer = trained()
    for _ in range(3):
        step(model, optimizer)
        writer.poll()
    assert not steps(tmp_path / "ours") and not told
    gate.set()
    writer.wait()
    save_checkpoint(tmp_path / "theirs", copy, copy_optimizer, CheckpointState(1, None), 1)
    assert told == [tmp_path / "ours" / "step-00000001"]
    ours, theirs = (
        {file.name: file.read_bytes() for file in (tmp_path / one).rglob("*.*")} for one in ("ours", "theirs")
    )
    assert ours == theirs and len(ours) == 3
    writer.poll()
    writer.save(CheckpointState(4, None))
    writer.wait()
    load_checkpoint(tmp_path / "ours", copy, copy_optimizer)
    assert torch.equal(copy.weight, model.weight) and steps(tmp_path / "ours") == [4]


def test_a_save_waits_for_the_one_before(tmp_path, gate):
    """Two never run at a time: the second begins when the first is complete."""
    writer = CheckpointWriter(tmp_path, *trained(), "sharded", 2, lambda path: None)
    writer.save(CheckpointState(1, None))
    second = threading.Thread(target=writer.save, args=[CheckpointState(2, None)])
    second.start()
    second.join(0.2)
    assert second.is_alive() and len(list(tmp_path.glob(".*"))) == 1
    gate.set()
    second.join()
    assert steps(tmp_path)[0] == 1
    writer.wait()
    assert steps(tmp_path) == [1, 2]


def test_killed_while_the_background_writes(tmp_path):
    """A process that is killed after `save` leaves the checkpoint before, and files that the next one removes."""
    save_checkpoint(tmp_path, *trained(), CheckpointState(1, None), 1)
    if (child := os.fork()) == 0:
        CheckpointWriter(tmp_path, *trained(seed=1), "sharded", 1, print).save(CheckpointState(2, None))
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert steps(tmp_path) == [1] and len(list(tmp_path.glob(".*"))) == 1
    model, optimizer = trained(seed=2)
    assert load_checkpoint(tmp_path, model, optimizer) == CheckpointState(1, None)
    save_checkpoint(tmp_path, model, optimizer, CheckpointState(2, None), 1, "sharded")
    assert steps(tmp_path) == [2] and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("end", ["poll", "wait", "save"])
def test_what_the_background_raises_reaches_training(tmp_path, end):
    """A disk that fills up while the background writes: what is called next raises it; the checkpoint before stays."""
    writer = CheckpointWriter(tmp_path, *trained(), "sharded", 1, lambda path: None)
    writer.save(CheckpointState(1, None))
    writer.wait()
    with full_disk():
        writer.save(CheckpointState(2, None))
        writer._threads.submit(lambda: None).result()  # the thread is through
    with pytest.raises(
        UserError, match=r"step-00000002.*: the checkpoint cannot be written: .*File too large.* and run"
    ):
        {"poll": writer.poll, "wait": writer.wait, "save": lambda: writer.save(CheckpointState(3, None))}[end]()
    assert steps(tmp_path) == [1]


def test_what_follows_a_checkpoint_may_fail(tmp_path):
    """Its error reaches training, too; the checkpoint is there."""

    def fail(path):
        raise UserError("no bucket")

    writer = CheckpointWriter(tmp_path, *trained(), "sharded", 1, fail)
    writer.save(CheckpointState(1, None))
    with pytest.raises(UserError, match="no bucket"):
        writer.wait()
    assert steps(tmp_path) == [1]


def test_a_list_of_files_that_is_not_seen(tmp_path):
    """Where all have written, and the first worker does not see what all wrote, there is no checkpoint."""
    writer = CheckpointWriter(tmp_path, *trained(), "sharded", 1, print)
    writer.save(CheckpointState(1, None))
    assert writer._writing is not None
    writer._writing.part.result()
    writer._writing = replace(writer._writing, parts=2)
    with pytest.raises(OSError, match=r"the files of 1 of 2 workers are seen here"):
        writer.wait()
    assert not steps(tmp_path)


def test_one_worker_copies_from_a_gpu_once(tmp_path):
    """In the background each tensor is copied into memory that is kept, without a wait of its own, and by no other."""
    (model, optimizer), (expected, moments) = trained(), trained()
    with PretendedGpu() as gpu:
        nn.Module.to(model, CUDA)
        for state in optimizer.state.values():
            state.update({name: value.to(CUDA) for name, value in state.items() if value.ndim})
        writer = CheckpointWriter(tmp_path, model, optimizer, "sharded", 1, print)
        gpu.copies = 0
        with gpu.during("save"):
            writer.save(CheckpointState(1, None, 0))
        writer.wait()
    assert (gpu.copies, gpu.waits("save")) == (6, 2), gpu.report()  # at the end: of the model, then of the moments
    found, optimizer = trained(seed=1)
    assert load_checkpoint(tmp_path, found, optimizer) == CheckpointState(1, None, 0)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))
    assert all(
        torch.equal(value, same[name])
        for state, same in zip(optimizer.state.values(), moments.state.values(), strict=True)
        for name, value in state.items()
    )
