"""Commands that tests start: their output goes to a file, every wait has an end, and nothing of them outlives its test.

A pipe would not do: a Ray process that survives its command holds it open, and reading to its end waits for ever.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil
import warm_workers


class Command:
    """A command in a session of its own. Leaving its `with` block kills it and every process that it started.

    `env` is added to the environment; `stdin`: a file descriptor; `stdout`: a file for standard output alone.
    `warm`: a fork of the server of the fixture `warm_workers`, as are the workers of the Ray that it starts; `argv` is
    then a module and its words.
    """

    def __init__(
        self,
        argv: list[str],
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: Path | None = None,
        warm: bool = False,
    ):
        self.log = tempfile.NamedTemporaryFile(prefix="command-")  # noqa: SIM115 (closed on leaving the `with` block)
        self.forks = tempfile.NamedTemporaryFile(prefix="forks-")  # noqa: SIM115
        environment = {**os.environ, **(env or {}), warm_workers.FORKS: self.forks.name}
        self.process: subprocess.Popen | warm_workers.Fork
        with open(stdout or os.devnull, "wb") as apart, open(os.devnull, "rb") as nothing:
            out, errors = (apart if stdout else self.log).fileno(), self.log.fileno()
            if warm:
                self.process = warm_workers.Fork(argv, cwd, environment, [nothing.fileno(), out, errors])
            else:
                self.process = subprocess.Popen(
                    argv, cwd=cwd, env=environment, stdin=stdin, stdout=out, stderr=errors, start_new_session=True
                )

    @property
    def printed(self) -> str:
        """What it has written so far: errors, and standard output unless that has a file of its own."""
        return Path(self.log.name).read_text(encoding="utf-8", errors="replace")

    @property
    def began(self) -> dict[int, float]:
        """The forks that became workers of the Ray that it started, by process id, with when each began."""
        lines = Path(self.forks.name).read_text(encoding="utf-8").splitlines()
        return {int(pid): float(time) for pid, time in map(str.split, lines)}

    def wait_for(self, condition: Callable[[], object], seconds: float = 300) -> None:
        """Wait until the condition holds; fails where the command ends before, or where it takes too long."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"ended with {self.process.returncode} too early:\n{self.printed}"
            assert time.monotonic() < deadline, f"waited {seconds:g} s in vain:\n{self.printed}"
            time.sleep(0.01)

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to every process of its group, as terminals and batch systems do."""
        os.killpg(self.process.pid, number)

    def finish(self, code: int = 0, seconds: float = 400) -> str:
        """Wait for its end; fails where the exit code is another one. Returns what was printed."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"has not ended within {seconds:g} s:\n{self.printed}") from None
        assert self.process.returncode == code, f"ended with {self.process.returncode}:\n{self.printed}"
        return self.printed

    def kill(self) -> None:
        """Kill every process that it started, Ray's own included, also where it has ended itself."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)  # or it goes on while the others are looked for
        while members := self._members():
            for member in members:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            psutil.wait_procs(members, timeout=5)
        self.process.wait(60)  # its other threads may still give memory back

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.log.close()
        self.forks.close()

    def _members(self) -> list[psutil.Process]:
        """The living processes of its session, what those started in others, and the warmed workers of its Ray."""
        began = self.began
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                is_fork = abs(process.create_time() - began.get(process.pid, 0)) < 2  # the clock is set now and then
                if is_fork or os.getsid(process.pid) == self.process.pid:
                    found |= {one.pid: one for one in (process, *process.children(recursive=True))}
        return [one for one in found.values() if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def start(module: str, *words: object, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Command:
    """Start `python -m module word …`."""
    return Command([sys.executable, "-m", module, *map(str, words)], cwd, env)


def start_warm(module: str, *words: object, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Command:
    """The same in a fork of the server of the fixture `warm_workers`, as are the workers of the Ray that it starts."""
    return Command([module, *map(str, words)], cwd, env, warm=True)


def run(
    module: str,
    *words: object,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    code: int = 0,
    warm: bool = False,
) -> str:
    """Run `python -m module word …` to its end; returns what it printed. Fails where it ends with another exit code."""
    with (start_warm if warm else start)(module, *words, cwd=cwd, env=env) as command:
        return command.finish(code)
