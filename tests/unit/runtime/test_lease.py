"""One writer a folder: a living driver is named, a dead one's place is taken, and who was taken for dead stops."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from lingu_ray.errors import UserError
from lingu_ray.evaluate import main
from lingu_ray.runtime.run_folder import lease
from lingu_ray.runtime.run_folder.folder import RunFolder, run_of

BEAT_S, STALE_S = 0.1, 1.5
DRIVER = f"""
import sys, time
from pathlib import Path
from lingu_ray.errors import UserError
from lingu_ray.runtime.run_folder import lease
lease.BEAT_S, lease.STALE_S = {BEAT_S}, {STALE_S}
with lease.lease_on(Path(sys.argv[1])) as held:
    print("held", flush=True)
    try:
        while True:
            held.require()
            time.sleep(0.05)
    except UserError as error:
        print(error, flush=True)
"""


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """Leases that beat, and go stale, in tenths of seconds."""
    monkeypatch.setattr(lease, "BEAT_S", BEAT_S)
    monkeypatch.setattr(lease, "STALE_S", STALE_S)


@pytest.fixture
def other(tmp_path):
    """Another driver's process, which holds the lease on `tmp_path / "run"`."""
    argv = [sys.executable, "-c", DRIVER, str(tmp_path / "run")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_driver_is_refused_while_the_first_lives(tmp_path, other):
    """The message names host, process, age and both ways out; once the first is killed, the second gets in at once."""
    folder = tmp_path / "run"
    told = rf"another driver writes it \(process {other.pid} on .*; last .* 0 s ago\)\. Wait .*`kill {other.pid}`"
    with pytest.raises(UserError, match=told), lease.lease_on(folder):
        pass
    other.kill()
    other.wait()
    begin = time.monotonic()
    with lease.lease_on(folder) as held:
        held.require()
        assert time.monotonic() - begin < STALE_S
        (folder / "metrics.jsonl").touch()
    with lease.lease_on(folder) as again, pytest.raises(UserError, match="belongs to another driver now"):
        again.require()
        held.require()  # ended: its workers, if any are left, write no more


@pytest.mark.parametrize("content", ["", '{"owner": "a", ', '{"owner": "a"}'])
def test_a_lease_that_says_nothing_is_told(tmp_path, content):
    """A file that was cut off, or that another version wrote, is named with its cure."""
    (tmp_path / "driver.json").write_text(content)
    told = rf"{tmp_path}/driver\.json is cut off, .* remove that file, and run the same"
    with pytest.raises(UserError, match=told), lease.lease_on(tmp_path):
        pass


@pytest.mark.parametrize("ended", [False, True])
def test_of_two_drivers_that_start_at_one_moment_one_gets_in(tmp_path, monkeypatch, ended):
    """All find the folder free, or the lease of an ended driver, before one writes; the last to write has it."""
    if ended:
        (tmp_path / "config.yaml").touch()
        with lease.lease_on(tmp_path):
            pass
    found, written, over, write = Barrier(3), Barrier(3), Barrier(3), lease._write

    def write_at_one_moment(path, holder):
        if holder.beats == 0:
            found.wait(60)
        write(path, holder)
        if holder.beats == 0:
            written.wait(60)

    def drive():
        try:
            with lease.lease_on(tmp_path) as held:
                over.wait(60)
                return held.require()
        except UserError as error:
            over.wait(60)
            return str(error)

    monkeypatch.setattr(lease, "_write", write_at_one_moment)
    with ThreadPoolExecutor(3) as pool:
        said = [one.result() for one in [pool.submit(drive) for _ in range(3)]]
    assert said.count(None) == 1 and sum("took it at this moment" in (one or "") for one in said) == 2


@pytest.mark.slow
def test_who_shows_no_sign_of_life_is_replaced_and_stops(tmp_path, other):
    """A suspended driver loses the lease; when it wakes it sees the new owner, stops, and leaves the lease to it."""
    os.kill(other.pid, signal.SIGSTOP)
    with lease.lease_on(tmp_path / "run") as held:
        os.kill(other.pid, signal.SIGCONT)
        assert "belongs to another driver now" in other.communicate(timeout=120)[0]
        time.sleep(3 * BEAT_S)
        held.require()
        (tmp_path / "run" / lease.LEASE_FILE).unlink()
        with pytest.raises(UserError, match=r"driver\.json is gone"):
            held.require()


def test_a_process_of_another_container_or_machine_is_not_known_to_be_dead(tmp_path, caplog):
    """A host's name may be shared: only within the same boot and process namespace does a missing process mean a dead
    driver. The namespace alone has the same number on any two machines."""
    with lease.lease_on(tmp_path / "run"):
        written = json.loads((tmp_path / "run" / lease.LEASE_FILE).read_text())
        dead = written | {"process": 2**22 + 1}
        assert lease.Holder(**dead).is_dead and not lease.Holder(**written).is_dead
        boot, namespace = written["namespace"].split()
        assert not lease.Holder(**dead | {"namespace": f"{boot} pid:[1]"}).is_dead
        assert not lease.Holder(**dead | {"namespace": f"{uuid.uuid4()} {namespace}"}).is_dead
        assert not lease.Holder(**dead | {"host": "elsewhere"}).is_dead
    assert not (tmp_path / "run").exists()  # nothing else came into it


def test_a_folder_that_was_there_stays(tmp_path):
    """It may be a link, a mount point or a shell's working directory: a command that is refused leaves it empty."""
    disk, linked = tmp_path / "disk", tmp_path / "linked"
    disk.mkdir()
    linked.symlink_to(disk)
    for folder in (linked, disk):
        with pytest.raises(UserError, match="refused"), lease.lease_on(folder):
            raise UserError("refused")
        assert linked.is_symlink() and disk.is_dir() and not [*disk.iterdir()]


@pytest.mark.parametrize("settings", ["config.yaml", "space.yaml"])
def test_a_runs_folder_and_report_belong_to_the_run(tmp_path, settings):
    """`evaluate out=` would write over a run's or sweep's page, records and MLflow run; any other folder is its own."""
    run = RunFolder(tmp_path / "run")
    assert run_of(run.report) is None
    run.root.mkdir()
    (run.root / settings).touch()
    assert run_of(run.report) == run_of(run.root) == run.root and run_of(run.root / "evaluation") is None
    for out in (run.root, run.report):
        with pytest.raises(
            UserError, match=rf"out={out}: a run's or sweep's own page.* as out={run.root}/evaluation\."
        ):
            main(["a/model", "tasks=arc_easy", f"out={out}"])


def test_a_folder_that_cannot_be_written(tmp_path):
    """A file of that name is an error that names it, and stays as it is; so is a name that is too long."""
    (tmp_path / "run").write_text("mine")
    for name in ("run", 300 * "n"):
        told = rf"{tmp_path}/{name}: cannot be written: .*name another folder"
        with pytest.raises(UserError, match=told), lease.lease_on(tmp_path / name):
            pass
    assert (tmp_path / "run").read_text() == "mine"
