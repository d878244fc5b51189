"""A SLURM cluster of two nodes on this machine: munged, slurmctld and two slurmd, all of it in one private folder."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from getpass import getuser
from pathlib import Path

from commands import Command
from processes import kill_all

from benchmarks.ports import free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1
MpiDefault=none
ReturnToService=2
KillWait=10
GresTypes=gpu
FirstJobId={first_job}
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 State=UNKNOWN
PartitionName=all Nodes=n1,n2 Default=YES State=UP
"""


def missing_programs() -> list[str]:
    """What of SLURM is not installed here; as root it is also found outside of PATH."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin"


class Slurm:
    """Commands for the cluster whose files are in `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.env = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}

    def command(self, *words: object, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        """What a SLURM command prints; fails where it does."""
        done = subprocess.run(
            list(map(str, words)),
            env={**os.environ, **self.env, **(env or {})},
            cwd=cwd,
            text=True,
            capture_output=True,
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """All that SLURM knows of a job, by SLURM's names."""
        return dict(re.findall(r"(\w+)=(\S*)", self.command("scontrol", "show", "job", number)))

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        return "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log")))


@contextmanager
def slurm_cluster() -> Iterator[Slurm]:
    """Start the cluster, wait until both nodes are idle, and kill it with everything that its jobs started."""
    # Short, and not under pytest's tmp_path: socket paths must stay below 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    slurm = Slurm(folder)
    values = {"host": socket.gethostname(), "user": getuser(), "folder": folder, "ports": free_ports(3)}
    values["first_job"] = 1 + os.getpid()  # Ray's ports follow from it: two such clusters on a machine do not meet
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**values))
    (folder / "munge.key").write_bytes(secrets.token_bytes(64))
    (folder / "munge.key").chmod(0o400)
    munge_files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(kill_all, "SLURM_CONF", slurm.env["SLURM_CONF"])

        def start(*argv: str) -> Command:
            return stack.enter_context(Command(list(argv), env=slurm.env))

        munged = start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge_files)
        munged.wait_for((folder / "munge.socket").exists, seconds=20)
        controller = start("slurmctld", "-D")
        for node in ("n1", "n2"):
            start("slurmd", "-D", "-N", node)
        controller.wait_for(lambda: _idle(slurm) == 2, seconds=60)
        yield slurm


def _idle(slurm: Slurm) -> int:
    time.sleep(0.2)
    done = subprocess.run(
        ["sinfo", "-h", "-N", "-o", "%T"], env={**os.environ, **slurm.env}, text=True, capture_output=True
    )
    return done.stdout.split().count("idle")
