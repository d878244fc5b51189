"""Runs in a bucket, on a real S3 server and the emulator of Google Cloud Storage: what gets there, and back."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from saved import save_checkpoint
from tinyrun import config
from torch import nn

from lingu_ray import storage
from lingu_ray.config import Config, strict_yaml
from lingu_ray.config.command_line import to_yaml
from lingu_ray.errors import UserError
from lingu_ray.runtime.checkpoints.checkpoint import CheckpointState, checkpoint_folders, checkpoints
from lingu_ray.runtime.checkpoints.contents import load_checkpoint
from lingu_ray.runtime.controls import control_config, control_folder
from lingu_ray.runtime.run_folder import lease, mirror
from lingu_ray.runtime.run_folder.folder import RunFolder, run_of
from lingu_ray.runtime.run_folder.lease import lease_on
from lingu_ray.runtime.run_folder.run_store import (
    GrowingCopy,
    fetch_run,
    following,
    newest_step,
    put_initial_model,
    writing_to,
)
from lingu_ray.runtime.training.worker_store import BucketStore, opened

pytestmark = pytest.mark.slow

BOTH = pytest.mark.parametrize("bucket", ["s3", "gs"], indirect=True)


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """Threads that look, and leases that beat, in tenths of seconds."""
    monkeypatch.setattr(mirror, "POLL_S", 0.1)
    monkeypatch.setattr(lease, "BEAT_S", 0.2)
    monkeypatch.setattr(lease, "STALE_S", 2.0)


def names(location: str) -> set[str]:
    """What is at a location."""
    return {entry.name for entry in storage.entries(location)}


def write(folder: Path, **files: str) -> Path:
    """Files by name (`__` for a slash, `_` for a dot) in a folder."""
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def until(condition) -> None:
    """Wait until something holds."""
    give_up = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def trained(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A small model, and an AdamW that has stepped."""
    torch.manual_seed(seed)
    model = nn.Linear(4, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(4)).sum().backward()
    optimizer.step()
    return model, optimizer


def worker(location: str, rank: int = 0) -> BucketStore:
    """A worker's store, for a run whose driver is this test."""
    if not names(f"{location}/initial_model"):
        storage.put(b"{}", f"{location}/initial_model/tokenizer_config.json")
        storage.put(json.dumps(vars(lease.Holder("me", "h", "n", 1, None, 0.0))).encode(), f"{location}/driver.json")
    return BucketStore(location, rank, lease.Lease(f"{location}/driver.json", "me"))


def save(store: BucketStore, step: int, validation_ce: float | None = None) -> nn.Module:
    """Save a checkpoint, and put it."""
    model, optimizer = trained(step)
    save_checkpoint(store.folder.checkpoints, model, optimizer, CheckpointState(step, validation_ce), keep_last=2)
    store.put_checkpoints()
    return model


def resumed(store: BucketStore) -> tuple[CheckpointState | None, nn.Module]:
    """What a worker resumes from."""
    model, optimizer = trained(99)
    store.fetch_checkpoints()
    return load_checkpoint(store.folder.checkpoints, model, optimizer), model


def test_places_have_working_folders(tmp_path, monkeypatch):
    """A location has one in the cache of each process's kind, from which it is found again; a folder is its own."""
    monkeypatch.setenv(storage.CACHE, str(tmp_path))
    assert storage.working_folder(tmp_path / "runs") == tmp_path / "runs" == storage.origin(tmp_path / "runs")
    for of in ("driver", "rank-0"):
        folder = storage.working_folder("s3://bucket/runs/mine", of)
        assert folder == tmp_path / of / "@s3" / "bucket" / "runs" / "mine"
        assert storage.origin(folder / "controls") == "s3://bucket/runs/mine/controls"
    assert storage.origin(storage.working_folder("gs://bucket")) == "gs://bucket"


def test_a_run_in_a_bucket_has_its_places(tmp_path, monkeypatch):
    """Settings say where its results, its corpora and its controls go; controls are in the run's working folder."""
    monkeypatch.setenv(storage.CACHE, str(tmp_path))
    run = config(tmp_path, "s3://bucket//runs/", tracking={"uri": "http://mlflow:5000"})
    assert (run.run_place, run.corpora_dir) == ("s3://bucket/runs/tiny", "s3://bucket/runs/.corpora")
    control = control_config(run, "plain_ce")
    assert control.run_place == "s3://bucket/runs/tiny/controls/plain_ce"
    assert control.run_dir == control_folder(RunFolder(run.run_dir), "plain_ce").root
    assert RunFolder(control.run_dir).exported_model == "s3://bucket/runs/tiny/controls/plain_ce/export"
    assert Config.model_validate(strict_yaml.load(to_yaml(run), "here")[0]) == run


@BOTH
def test_a_drivers_files_make_a_round_trip(bucket, tmp_path):
    """What it writes is there, what it removes is gone, what is a worker's or nobody's is not put; the next driver,
    with no folder of before, finds all but weights; and nobody else writes there meanwhile."""
    location = f"{bucket}/runs/mine"
    folder = RunFolder(storage.working_folder(location))
    with writing_to(location) as held:
        write(folder.root, config_yaml="name: mine", STOP="", report__items__a_parquet="1" * 4096, metrics_jsonl="{}\n")
        write(folder.root, _ray__x="", report__report_html="page", controls__plain__config_yaml="name: plain")
        until(lambda: "config.yaml" in names(location))
        folder.stop.unlink()
        until(lambda: "STOP" not in names(location))
        with pytest.raises(UserError, match=rf"{location}: another driver writes it"), writing_to(location):
            pass
        write(folder.initial_model, tokenizer__config_json="", model_safetensors="weights")
        (folder.initial_model / "tokenizer").rename(folder.initial_model / "t")
        (folder.initial_model / "tokenizer_config.json").write_text("{}")
        put_initial_model(folder)
        write(folder.report, report_html="a longer page")
        held.require()
    written = {"config.yaml", "report/items/a.parquet", "report/report.html", "controls/plain/config.yaml"}
    initial = {"initial_model/t/config.json", "initial_model/tokenizer_config.json", "initial_model/model.safetensors"}
    assert names(location) == {*written, *initial, "driver.json"} and not folder.root.exists()
    assert storage.read_bytes(f"{location}/report/report.html") == b"a longer page"
    assert run_of(f"{location}/report") == run_of(location) == location and run_of(f"{location}/a") is None

    storage.put(b"weights", f"{location}/export/model.safetensors")  # cut off: no config.json
    storage.put(b"{}", f"{location}/controls/plain/export/config.json")
    storage.put(b"weights", f"{location}/export-step-4/model.safetensors")  # of a checkpoint, by the command
    storage.put(b"{}", f"{location}/export-step-4/config.json")
    with writing_to(location):
        found = {str(path.relative_to(folder.root)) for path in folder.root.rglob("*") if path.is_file()}
        initial.remove("initial_model/model.safetensors")
        exports = {"controls/plain/export/config.json", "export-step-4/config.json"}
        assert found == written | initial | exports and not folder.export.exists()
        storage.remove(folder.initial_model)
        assert not names(f"{location}/initial_model")


def test_a_driver_that_lost_its_lease_puts_nothing(bucket, tmp_path):
    """What it has not put stays here, and is named; its folder is not removed."""
    location = f"{bucket}/runs/mine"
    with pytest.raises(UserError, match=rf"{location} belongs to another driver now"), writing_to(location) as held:
        other = json.loads(storage.read_bytes(held.path)) | {"owner": "another"}
        storage.put(json.dumps(other).encode(), held.path)
        folder = write(storage.working_folder(location), config_yaml="mine")
    assert names(location) == {"driver.json"} and (folder / "config.yaml").exists()


@BOTH
def test_a_checkpoint_makes_a_round_trip(bucket, tmp_path):
    """Both workers of another node fetch it, to the bit; what is pruned here is pruned there; the best stays."""
    location = f"{bucket}/runs/mine"
    store = worker(location)
    save(store, 1, validation_ce=1.0)
    save(store, 2)
    save(store, 3)
    model = save(store, 4)
    there = {name.partition("/")[0] for name in names(store.at_checkpoints)}
    assert there == {"step-00000001", "step-00000003", "step-00000004"}
    for rank in (0, 1):
        other = worker(location, rank)
        state, again = resumed(other)
        assert state == CheckpointState(4, None) and torch.equal(again.weight, model.weight)
        assert [state.step for _, state in checkpoints(other.folder.checkpoints)] == [1, 3, 4]
    other = worker(location)
    resumed(other)
    save(other, 5)
    there = {name.partition("/")[0] for name in names(store.at_checkpoints)}
    assert there == {"step-00000001", "step-00000004", "step-00000005"}

    fetch_run(location, tmp_path / "copy")  # as a driver sees it: which there are, without their weights
    assert [state.step for _, state in checkpoints(tmp_path / "copy" / "checkpoints")] == [1, 4, 5]
    assert not [*tmp_path.glob("copy/**/*.safetensors")]


def test_a_nodes_copy_that_lost_files_is_no_damage(bucket):
    """A checkpoint of which a node's disk lost a file is fetched again, and stays in the bucket."""
    location = f"{bucket}/runs/mine"
    store = worker(location)
    save(store, 1)
    model = save(store, 2)
    assert resumed(worker(location))[0] == CheckpointState(2, None)
    (store.of_node / "checkpoint" / "step-00000002" / "model.safetensors").unlink()
    state, again = resumed(worker(location))
    assert state == CheckpointState(2, None) and torch.equal(again.weight, model.weight)


def test_a_copy_by_hand_is_left_alone(bucket):
    """What lies beside the checkpoints under another name is deleted neither by driver nor by worker."""
    location = f"{bucket}/runs/mine"
    copies = {f"checkpoints/{name}/model.safetensors" for name in ("step-00000001.bak", "step-00000009 (copy)")}
    for name in copies:
        storage.put(b"weights", f"{location}/{name}")
    with writing_to(location), following(RunFolder(storage.working_folder(location))):
        pass
    assert copies <= names(location)
    store = worker(location)
    for step in (1, 2, 3):
        save(store, step)
    assert copies <= names(location) and resumed(worker(location))[0] == CheckpointState(3, None)


@pytest.mark.parametrize("damage", ["no marker", "half a marker", "another state", "cut off", "changed"])
def test_half_a_checkpoint_is_none(bucket, damage, tmp_path, caplog):
    """Whose upload was cut off, or whose content changed, is not resumed from, with a warning: the one before is."""
    location = f"{bucket}/runs/mine"
    store = worker(location)
    before = save(store, 4)
    save(store, 8)
    newest = f"{store.at_checkpoints}/step-00000008"
    if damage == "no marker":
        storage.delete(f"{newest}/state.json")
    elif damage == "half a marker":
        storage.put(storage.read_bytes(f"{newest}/state.json")[:20], f"{newest}/state.json")
    elif damage == "another state":
        storage.put(b"[]", f"{newest}/state.json")
    else:
        content = storage.read_bytes(f"{newest}/model.safetensors")
        wrong = content[:-8] if damage == "cut off" else content[:-1] + bytes([content[-1] ^ 1])
        storage.put(wrong, f"{newest}/model.safetensors")
    again = worker(location)
    state, model = resumed(again)
    assert state == CheckpointState(4, None) and torch.equal(model.weight, before.weight)
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert any("step-00000008: " in text and "not resumed from" in text for text in told)
    save(again, 6)
    assert {name.partition("/")[0] for name in names(store.at_checkpoints)} == {"step-00000004", "step-00000006"}


@pytest.mark.parametrize("damage", ["cut off", "changed"])
def test_a_run_of_which_no_checkpoint_is_whole_ends(bucket, damage, tmp_path):
    """It does not start again, and nothing is deleted; as the driver sees it, it was trained. A first upload that was
    cut off never was a checkpoint: there the run starts."""
    location = f"{bucket}/runs/mine"
    store = worker(location)
    save(store, 4)
    weights = f"{store.at_checkpoints}/step-00000004/model.safetensors"
    content = storage.read_bytes(weights)
    storage.put(content[:-8] if damage == "cut off" else content[:-1] + bytes([content[-1] ^ 1]), weights)
    before = names(location)
    for _ in range(2):
        with pytest.raises(
            UserError, match=rf"{store.at_checkpoints}: no checkpoint is whole: files of step-0+4 .* remove that folder"
        ):
            resumed(worker(location))
    assert names(location) == before
    fetch_run(location, tmp_path / "copy")
    assert [path.name for path in checkpoint_folders(tmp_path / "copy" / "checkpoints")] == ["step-00000004"]
    storage.delete(f"{store.at_checkpoints}/step-00000004/state.json")
    assert resumed(worker(location))[0] is None


def test_a_worker_puts_what_it_writes_and_sees_what_the_driver_wants(bucket, tmp_path):
    """Records go to the driver as they come, STOP to the worker; of two workers each puts its own log; all is there
    at the end, and a worker that is started again goes on with it."""
    location = f"{bucket}/runs/mine"
    worker(location)
    run = RunFolder(storage.working_folder(location))
    held = lease.Lease(f"{location}/driver.json", "me")
    with following(run), opened(location, 0, held) as first, opened(location, 1, held) as second:
        write(first.folder.root, metrics_jsonl="1\n", logs__rank="no name of ours")
        (first.folder.logs / "rank-0.jsonl").write_text("a\n")
        (second.folder.root / "metrics.jsonl").write_text("not mine\n")
        second.folder.logs.mkdir()
        (second.folder.logs / "rank-1.jsonl").write_text("b\n")
        until(lambda: run.metrics.exists() and run.metrics.read_text() == "1\n")
        storage.put(b"", f"{location}/STOP")
        until(first.folder.stop.exists)
        with first.folder.metrics.open("a") as file:
            file.write("2\n")
        write(first.folder.export, config_json="{}", model_safetensors="weights")
        first.put_export()
        first.folder.exported.write_text('{"step": 2}')
    assert run.metrics.read_text() == "1\n2\n" and run.exported_step == 2
    assert [path.name for path in run.export.iterdir()] == ["config.json"]
    logs = {path.name: path.read_text() for path in run.logs.iterdir()}
    assert logs == {"rank-0.jsonl": "a\n", "rank-1.jsonl": "b\n"}
    assert "export/model.safetensors" in names(location) and not first.folder.root.exists()
    with opened(location, 0, held) as again:
        assert again.folder.metrics.read_text() == "1\n2\n" and (again.folder.logs / "rank-0.jsonl").exists()
        storage.put(json.dumps(vars(lease.Holder("you", "h", "n", 1, None, 0.0))).encode(), f"{location}/driver.json")
        until(lambda: again.holder.owner == "you")
        with pytest.raises(UserError, match="belongs to another driver now"):
            again.require_lease()
        with pytest.raises(UserError, match="belongs to another driver now"):
            again.put_checkpoints()


def test_a_working_folder_that_was_removed_takes_nothing_along(bucket, tmp_path):
    """Whoever needs the disk may delete the node's copies: driver and worker stop, and the bucket keeps all it has."""
    location = f"{bucket}/runs/mine"
    store = worker(location)
    for step in (1, 2):
        save(store, step)
    store.folder.metrics.write_text("1\n")
    store.mirror.flush()
    before = names(location)
    assert newest_step(location) == 2 and newest_step(f"{bucket}/nowhere") == 0
    shutil.rmtree(store.folder.root)
    for put in (store.mirror.flush, store.put_checkpoints):
        with pytest.raises(UserError, match=rf"was removed while it was in use: {location} is left as it was"):
            put()
    store.folder.checkpoints.mkdir(parents=True)
    with pytest.raises(UserError, match="was removed while it was in use"):
        save(store, 3)
    assert names(location) == before


def test_a_growing_object_is_copied_line_by_line(bucket, tmp_path):
    """Only what was added is read; a half line waits; one that was cut, and grew again, is replaced."""
    copy = GrowingCopy(f"{bucket}/metrics.jsonl", tmp_path / "metrics.jsonl")
    copy.update()
    assert not copy.path.exists()
    inodes = []
    for content, known in (
        ("first\n", "first\n"),
        ("first\nsecond\nhal", "first\nsecond\n"),
        ("first\nsecond\nhalf\n", "first\nsecond\nhalf\n"),
        ("first\nother\nhalf and more\nfourth\n", "first\nother\nhalf and more\nfourth\n"),
        ("first\n", "first\n"),
    ):
        storage.put(content.encode(), copy.location)
        copy.update()
        copy.update()
        assert copy.path.read_text() == known
        inodes.append(copy.path.stat().st_ino)
    assert len(set(inodes[:3])) == 1 and inodes[3] != inodes[2] and inodes[4] != inodes[3]


def test_a_lease_is_an_object(bucket, tmp_path, monkeypatch):
    """A driver that shows no sign of life is replaced, and then stops; where nothing else came the object goes."""
    location = f"{bucket}/runs/mine"
    with lease_on(location) as held:
        assert names(location) == {"driver.json"}
        monkeypatch.setattr(lease, "BEAT_S", 60)
    assert not names(location)
    with lease_on(location) as held:
        (other := json.loads(storage.read_bytes(held.path))).update(host="another", owner="another")
        storage.put(json.dumps(other).encode(), held.path)
        begin = time.monotonic()
        with lease_on(location) as taken, pytest.raises(UserError, match="belongs to another driver now"):
            assert time.monotonic() - begin >= lease.STALE_S
            taken.require()
            held.require()
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
