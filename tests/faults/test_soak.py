"""The soak: a run is struck as planned, resumes each time, and its result says whether the weights are equal."""

import json
import os
import select
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager

import commands
import pytest
from tinyrun import write_settings

from benchmarks import soak
from lingu_ray.errors import UserError
from lingu_ray.runtime.run_folder.records import read_records

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(900)]


@contextmanager
def warm(arguments):
    """The training command as a fork of the fixture's server."""
    with commands.start_warm("lingu_ray.train", *arguments) as command:
        yield command.process


@pytest.mark.long
def test_the_weights_are_equal_whatever_strikes(warm_workers, data, tmp_path, monkeypatch, capsys):
    """Three faults at three steps; a second call finds all of it done."""
    monkeypatch.setattr(soak, "started", warm)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    train = {"steps": 40, "checkpoint_every": 5, "validate_every": 0, "sample_every": 0}
    run = write_settings(tmp_path / "run.yaml", data, tmp_path, train=train)
    arguments = [
        f"run={run}",
        "faults=3",
        "kinds=interrupt,kill_all,cut_checkpoint",
        "seed=2",
        f"out={tmp_path / 'soak'}",
    ]
    options = soak.settings_alone(arguments, soak.HELP)
    planned = soak.plan(options, 40)
    assert planned == soak.plan(options, 40) and len({fault for _, fault in planned}) == 3
    for _ in range(2):
        soak.main(arguments)
        (row,) = json.loads(capsys.readouterr().out)["rows"]
        assert row["equal"] and row["faults"] == 3 and row["steps"] == 40
    log = read_records(tmp_path / "soak" / "soak.log")
    assert [(record["step"], record["fault"]) for record in log] == planned
    undisturbed, struck = (tmp_path / "soak" / "runs" / name for name in ("undisturbed", "struck"))
    assert soak.same_weights(undisturbed, struck) and not soak.same_weights(undisturbed, data)


@pytest.mark.skipif(not shutil.which("setpriv"), reason="no setpriv (util-linux)")
def test_a_soak_that_is_killed_takes_its_run_with_it():
    """The run would go on alone past the steps of the faults to come: killed at any time, also while it starts it."""
    for wait_s in (0, 0, 0, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05):
        held, inherited = os.pipe()
        if not (soak_itself := os.fork()):
            os.set_inheritable(inherited, True)
            subprocess.Popen(soak.tied(["sleep", "600"]), close_fds=False)
            time.sleep(wait_s)
            os.kill(os.getpid(), signal.SIGKILL)
        os.close(inherited)
        os.waitpid(soak_itself, 0)
        ended, _, _ = select.select([held], [], [], 20)  # closed with its last process
        assert ended, f"it lives, killed after {wait_s} s"
        os.close(held)


def test_a_fault_that_comes_too_late_is_refused():
    """A run that is far past a fault's step is not the one that was planned."""
    soak.refuse_late("kill_teacher", 7, now=7 + soak._LATEST)
    with pytest.raises(UserError, match="kill_teacher was planned at step 7, and the run is at 300"):
        soak.refuse_late("kill_teacher", 7, now=300)
