"""Checkpoints: all that a run resumes from, written whole, the right ones kept."""

import errno
import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from saved import save_checkpoint
from torch import nn

from lingu_ray.errors import UserError
from lingu_ray.runtime.checkpoints import checkpoint
from lingu_ray.runtime.checkpoints.checkpoint import (
    CheckpointState,
    best_checkpoint,
    checkpoints,
    require_space,
    set_aside_damaged,
    storage_failures_explained,
)
from lingu_ray.runtime.checkpoints.contents import load_checkpoint
from lingu_ray.runtime.checkpoints.tensor_files import Piece, whole, write_pieces


def trained(seed=0, steps=3):
    """A small model with tied weights, and an AdamW that has stepped."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 8, bias=False))
    model[1].weight = model[0].weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        model(torch.arange(8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.mark.parametrize("layout", ["whole", "sharded"])
def test_round_trip_goes_on_as_if_nothing_happened(tmp_path, layout):
    """After a restore the next step gives the same weights as without one."""
    model, optimizer = trained()
    save_checkpoint(tmp_path, model, optimizer, CheckpointState(3, 1.5), 1, layout)
    other, other_optimizer = trained(seed=1, steps=1)
    assert load_checkpoint(tmp_path, other, other_optimizer) == CheckpointState(3, 1.5)
    for m, o in ((model, optimizer), (other, other_optimizer)):
        m(torch.arange(8)).square().sum().backward()
        o.step()
    assert torch.equal(model[0].weight, other[0].weight)


@pytest.mark.parametrize("layout", ["whole", "sharded"])
def test_what_was_loaded_keeps_no_file(tmp_path, layout):
    """A mapped file that is removed keeps its room on the disk, and on NFS its folder cannot be removed."""
    model, optimizer = trained()
    save_checkpoint(tmp_path, model, optimizer, CheckpointState(3, 1.5), 1, layout)
    load_checkpoint(tmp_path, model, optimizer)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    """A tensor that only one of the two has is named: neither keeps what it was made with in silence."""
    model, optimizer = trained()
    save_checkpoint(tmp_path, nn.Sequential(*model, nn.Linear(8, 2)), optimizer, CheckpointState(3, None), keep_last=1)
    with pytest.raises(UserError, match=r"step-00000003: its tensors are not those of the model, .* 2.bias, 2.weight"):
        load_checkpoint(tmp_path, model, optimizer)


@pytest.mark.parametrize("layout", ["whole", "sharded"])
def test_frozen_weights_are_left_out_and_known_again(tmp_path, layout):
    """Of them there is the first row alone: with the model that a run was started from it goes on, and with another,
    which is named, it does not. Whether they are in bf16 by then does not matter."""

    def partly_frozen(first=0.5):
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.25)
            model[0].weight[0, 0] = first
        model[0].requires_grad_(False)
        optimizer = torch.optim.AdamW(model[1].parameters(), lr=0.1)
        model(torch.ones(64)).sum().backward()
        optimizer.step()
        return model, optimizer

    model, optimizer = partly_frozen()
    save_checkpoint(tmp_path, model, optimizer, CheckpointState(3, 1.5), 1, layout)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors")) < model[0].weight.nbytes
    same, same_optimizer = partly_frozen()
    same[0].bfloat16()
    nn.init.zeros_(same[1].weight)
    assert load_checkpoint(tmp_path, same, same_optimizer) == CheckpointState(3, 1.5)
    assert same[1].weight.equal(model[1].weight) and same[0].weight.float().equal(model[0].weight)
    with pytest.raises(UserError, match=r"step-00000003: what was frozen is not what the student has now, .* 0.weight"):
        load_checkpoint(tmp_path, *partly_frozen(first=0.75))


def test_all_weights_of_an_earlier_version_are_read(tmp_path):
    """It saved frozen ones, too."""
    model, optimizer = trained()
    save_checkpoint(tmp_path, model, optimizer, CheckpointState(3, 1.5), 1)
    other, other_optimizer = trained(seed=1, steps=1)
    other.requires_grad_(False)
    load_checkpoint(tmp_path, other, other_optimizer)
    assert other[0].weight.equal(model[0].weight)


def test_newest_and_best_are_kept(tmp_path):
    """The `keep_last` newest stay, and the best by validation; half-written ones do not count, and are removed."""
    model, optimizer = trained()
    (tmp_path / ".step-00000001.elsewhere-1-00.tmp").mkdir()  # of a worker on another machine, killed as it saved
    assert load_checkpoint(tmp_path, model, optimizer) is None
    for step, ce in ((1, math.nan), (2, 1.0), (3, 2.0), (4, 2.5), (5, None)):
        save_checkpoint(tmp_path, model, optimizer, CheckpointState(step, ce), keep_last=2)
    (tmp_path / "step-00000009").mkdir()  # a folder without state: what a crash could leave
    assert [state.step for _, state in checkpoints(tmp_path)] == [2, 4, 5]
    assert best_checkpoint(tmp_path).name == "step-00000002"
    assert not list(tmp_path.glob(".*"))


def test_a_kill_while_one_is_removed_leaves_nothing_of_it(tmp_path, monkeypatch):
    """Half of a checkpoint would be none, so that nobody removes it: it is not called one any more by then."""
    model, optimizer = trained()
    for step in (1, 2):
        save_checkpoint(tmp_path, model, optimizer, CheckpointState(step, 3.0 - step), 3)

    def killed(folder, ignore_errors=False):
        if folder.exists():
            (folder / "state.json").unlink()
            raise SystemExit

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(shutil, "rmtree", killed)
        checkpoint.prune(tmp_path, 1)
    load_checkpoint(tmp_path, model, optimizer)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_a_copy_by_hand_is_left_alone(tmp_path):
    """A folder of another name is no checkpoint: it is neither resumed from, nor counted, nor removed."""
    model, optimizer = trained()
    save_checkpoint(tmp_path, model, optimizer, CheckpointState(3, None), keep_last=2)
    copies = [tmp_path / "step-00000003.bak", tmp_path / "step-00000009 (copy)", tmp_path / "step-latest"]
    for copy in copies:
        shutil.copytree(tmp_path / "step-00000003", copy)
    assert load_checkpoint(tmp_path, model, optimizer) == CheckpointState(3, None)
    for step in (6, 9):
        save_checkpoint(tmp_path, model, optimizer, CheckpointState(step, None), keep_last=2)
    assert [state.step for _, state in checkpoints(tmp_path)] == [6, 9]
    assert all(copy.is_dir() for copy in copies)


@pytest.mark.parametrize("content", ["{}", '{"validation_ce": null}', '{"step": 5, "validation_ce": null}'])
def test_a_state_that_is_not_of_its_folder_is_damage(tmp_path, content):
    """Without a step, or with that of another checkpoint, it is set aside, and the one before is taken."""
    model, optimizer = trained()
    for step in (3, 6):
        save_checkpoint(tmp_path, model, optimizer, CheckpointState(step, None), keep_last=2)
    (tmp_path / "step-00000006" / "state.json").write_text(content)
    assert load_checkpoint(tmp_path, model, optimizer) == CheckpointState(3, None)
    assert (tmp_path / "damaged-step-00000006").is_dir()


def test_a_state_of_a_later_version_is_told(tmp_path):
    """It is neither read without what is not known here, nor taken for damage."""
    model, optimizer = trained()
    save_checkpoint(tmp_path, model, optimizer, CheckpointState(3, None), keep_last=2)
    state = tmp_path / "step-00000003" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"of_tomorrow": 1}))
    with pytest.raises(UserError, match=r"step-00000003/state.json is of a later version of lingu_ray: .* of_tomorrow"):
        load_checkpoint(tmp_path, model, optimizer)
    assert state.exists()


def test_no_disk_space_is_said_before_anything_is_written(tmp_path):
    """The error names what, how much, where, and the cure."""
    with pytest.raises(
        UserError, match=r"no disk space for the checkpoint of step 7: .* MB needed, .* MB free in .*keep_last"
    ):
        require_space(tmp_path, 1 << 60, "the checkpoint of step 7")


@pytest.mark.parametrize("damage", ["cut in half", "changed", "no state", "half a state"])
def test_a_damaged_checkpoint_is_set_aside(tmp_path, caplog, damage):
    """Whatever is wrong with the newest, it is named, and the one before is loaded; the next ones are kept as ever."""
    model, optimizer = trained()
    save_checkpoint(tmp_path, model, optimizer, CheckpointState(3, None, bad_steps=1), keep_last=2)
    saved = model[0].weight.detach().clone()
    save_checkpoint(tmp_path, *trained(seed=2), CheckpointState(6, None), keep_last=2)
    newest = tmp_path / "step-00000006"
    weights, state = newest / "model.safetensors", newest / "state.json"
    if damage == "cut in half":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    elif damage == "changed":
        *before, last = weights.read_bytes()
        weights.write_bytes(bytes([*before, last ^ 1]))
    elif damage == "no state":
        state.unlink()
    else:
        state.write_text(state.read_text()[:20])
    other, other_optimizer = trained(seed=1, steps=1)
    assert load_checkpoint(tmp_path, other, other_optimizer) == CheckpointState(3, None, bad_steps=1)
    assert torch.equal(other[0].weight, saved)
    assert f"{newest}: a file is missing, cut off or changed; set aside as damaged-step-00000006" in caplog.text
    save_checkpoint(tmp_path, model, optimizer, CheckpointState(5, None), keep_last=1)
    assert [state.step for _, state in checkpoints(tmp_path)] == [5]


def failing(number):
    """A call that storage answers with this error."""

    def fail(*_, **__):
        raise OSError(number, os.strerror(number), "step-00000006")

    return fail


@pytest.mark.parametrize(
    ("place", "name", "number"),
    [
        (Path, "read_bytes", errno.ESTALE),
        (checkpoint, "file_identity", errno.EIO),
        (Path, "stat", errno.EMFILE),
        (os, "listdir", errno.EACCES),
    ],
)
def test_storage_that_fails_for_a_moment_damages_nothing(tmp_path, monkeypatch, place, name, number):
    """The error reaches the worker, which Ray starts again; then the newest is loaded. A command says what it is."""
    model, optimizer = trained()
    for step in (3, 6):
        save_checkpoint(tmp_path, model, optimizer, CheckpointState(step, None), keep_last=2)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, failing(number))
        if place is os:  # as Path.glob lists a folder
            patch.setattr(os, "scandir", failing(number))
        with pytest.raises(OSError, match=os.strerror(number)):
            load_checkpoint(tmp_path, model, optimizer)
        with (
            pytest.raises(UserError, match=r"its checkpoints cannot be read now: .*run the same command again"),
            storage_failures_explained(tmp_path),
        ):
            set_aside_damaged(tmp_path)
    assert load_checkpoint(tmp_path, model, optimizer) == CheckpointState(6, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000006"]


def test_a_run_of_which_no_checkpoint_is_whole_does_not_start_again(tmp_path):
    """It ends, now and at the next try, and says what to do; all keep their names. Without that folder it starts."""
    model, optimizer = trained()
    for step in (3, 6, 9, 12):
        save_checkpoint(tmp_path / "checkpoints", model, optimizer, CheckpointState(step, None), keep_last=4)
    for weights in tmp_path.glob("*/*/model.safetensors"):
        weights.unlink()
    for _ in range(2):
        with pytest.raises(
            UserError,
            match=r"checkpoints: no checkpoint is whole: files of step-0+6, step-0+9, step-0+12 and 1 earlier are .*"
            r"remove that folder",
        ):
            load_checkpoint(tmp_path / "checkpoints", model, optimizer)
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    assert load_checkpoint(tmp_path / "checkpoints", model, optimizer) is None


@pytest.mark.parametrize("layout", ["whole", "sharded"])
def test_a_parameter_without_dimensions_is_resumed(tmp_path, layout):
    """Its moments have the shape of AdamW's step, and are restored as those of the others are."""

    class Scaled(nn.Linear):
        def __init__(self, seed):
            torch.manual_seed(seed)
            super().__init__(4, 3)
            self.scale = nn.Parameter(torch.tensor(2.0 + seed))

        def forward(self, input):
            return self.scale * super().forward(input)

    def stepped(seed):
        model = Scaled(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        return step(model, optimizer), optimizer

    def step(model, optimizer):
        model(torch.ones(4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return model

    saved, restored = stepped(0), stepped(1)
    save_checkpoint(tmp_path, *saved, CheckpointState(1, None), 1, layout)
    load_checkpoint(tmp_path, *restored)
    for one, other in zip(step(*saved).parameters(), step(*restored).parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["model", "optimizer"])
def test_a_checkpoint_that_lacks_rows_is_not_loaded(tmp_path, kind):
    """A piece that nobody wrote is named: neither weights nor moments keep what was there before."""
    model, optimizer = trained()
    save_checkpoint(tmp_path, model, optimizer, CheckpointState(3, None), 1)
    file = tmp_path / "step-00000003" / f"{kind}.safetensors"
    tensors = load_file(file)
    name, rows = next((name, tensor) for name, tensor in tensors.items() if tensor.ndim)
    write_pieces(file, {n: whole(tensor) for n, tensor in tensors.items()} | {name: Piece(rows[:5], 0, 8)})
    (file.parent / "state.json").write_text('{"step": 3, "validation_ce": null}')
    with pytest.raises(UserError, match=rf"step-00000003: of rows 0 to 7 of {name} it has 5, so a file .* move"):
        load_checkpoint(tmp_path, model, optimizer)


def test_checkpoints_of_earlier_versions_are_read(tmp_path):
    """They say nothing of their files: what is there is taken for whole. The optimizer's state is a torch.save."""
    model, optimizer = trained()
    save_checkpoint(tmp_path, model, optimizer, CheckpointState(3, 1.5), keep_last=1)
    folder = tmp_path / "step-00000003"
    (folder / "state.json").write_text('{"step": 3, "validation_ce": 1.5}')
    (folder / "optimizer.safetensors").unlink()
    torch.save({"0.weight": optimizer.state[model[0].weight]}, folder / "optimizer.pt")
    other, other_optimizer = trained(seed=1, steps=1)
    assert load_checkpoint(tmp_path, other, other_optimizer) == CheckpointState(3, 1.5)
    saved, loaded = optimizer.state[model[0].weight], other_optimizer.state[other[0].weight]
    assert saved.keys() == loaded.keys() and all(torch.equal(saved[key], loaded[key]) for key in saved)
