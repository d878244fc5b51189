"""Ctrl-C lets work save first, and ends what has nothing to save, also where the exception that it raises is lost."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from commands import Command

from lingu_ray import interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_lost_interrupt_is_raised_again(number: signal.Signals):
    """Code that swallows the exception does not go on past the end; the handler from before is back."""
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interrupt.exit_on_interrupt():
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            swallowed = True
    assert swallowed and signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_says_so(number: signal.Signals):
    """One line and exit code 130, wherever it is: a batch system's signal says no less than Ctrl-C."""
    code = (
        f"import signal; from lingu_ray.errors import run_command; run_command(lambda _: signal.raise_signal({number}))"
    )
    with Command([sys.executable, "-c", code]) as command:
        assert command.finish(130) == "stopped; what was finished is kept\n"


def test_a_termination_that_a_library_takes_for_itself_is_an_interrupt():
    """Ray sets a handler of its own while it starts, which exits with the signal's number; other exits stay exits."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interrupt.exit_on_interrupt():
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(SystemExit), interrupt.exit_on_interrupt():
        sys.exit(1)


class Ends:
    """Calls something as it is freed, where Python drops every exception."""

    def __init__(self, call):
        self.call = call

    def __del__(self):
        self.call()


def test_an_interrupt_that_python_drops_is_raised_again_in_silence(monkeypatch):
    """No traceback of it is printed, as of other errors that are dropped; the hook from before is back."""
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: told.append(dropped.exc_type))
    before = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt), interrupt.exit_on_interrupt():
        Ends(lambda: signal.raise_signal(signal.SIGINT))
        Ends(lambda: 1 / 0)
        reached = True
    assert reached and told == [ZeroDivisionError] and sys.unraisablehook is before


def test_nothing_ends_the_process_later(monkeypatch):
    """Who catches the exception goes on: what would end a process that hangs is called off."""
    monkeypatch.setattr(interrupt, "_GIVE_UP_S", 0.2)
    with pytest.raises(KeyboardInterrupt), interrupt.exit_on_interrupt():
        signal.raise_signal(signal.SIGINT)
    time.sleep(0.4)
    assert not any(isinstance(thread, threading.Timer) for thread in threading.enumerate())


def test_what_hangs_after_an_interrupt_is_ended():
    """A process that swallows it and waits for ever ends with the exit code of an interruption."""
    code = """
import signal, threading
from lingu_ray import interrupt
interrupt._GIVE_UP_S = 0.5
with interrupt.exit_on_interrupt():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        threading.Event().wait()
"""
    with Command([sys.executable, "-c", code]) as command:
        command.finish(130)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_interrupt_saves_and_the_second_ends(number: signal.Signals):
    """The first signal calls `save` and lets the work go on to its end; the handlers from before are back after it."""
    before, calls = signal.getsignal(number), []
    with interrupt.save_on_interrupt(lambda: calls.append("save")) as asked:
        assert not asked.is_set()
        signal.raise_signal(number)
        assert asked.is_set() and calls == ["save"]
    assert signal.getsignal(number) is before
    with pytest.raises(KeyboardInterrupt), interrupt.save_on_interrupt(lambda: calls.append("save")):
        signal.raise_signal(number)
        signal.raise_signal(number)
    assert calls == ["save", "save"] and signal.getsignal(number) is before


def test_a_terminal_that_is_closed_saves_and_ends_nothing():
    """Its signal saves, also where it comes twice, from the shell and the kernel; one that `nohup` ignores stays so."""
    calls: list[str] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under `nohup`
    try:
        with interrupt.save_on_interrupt(lambda: calls.append("save")):
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)
            assert calls == ["save"]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with interrupt.save_on_interrupt(lambda: calls.append("ignored")):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert calls == ["save"]


def test_other_threads_leave_signals_alone():
    """A run that is driven by another thread, as a trial's, cannot and does not handle signals."""
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with interrupt.save_on_interrupt(lambda: None), interrupt.exit_on_interrupt():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "imports", "number"),
    [
        ("lingu_ray", "pydantic", signal.SIGINT),
        ("lingu_ray.export", "transformers", signal.SIGINT),
        ("lingu_ray.doctor", "pydantic", signal.SIGTERM),
        ("tuning.compare", "jinja2", signal.SIGTERM),
        ("tuning.compare", "mlflow", None),
    ],
)
def test_an_interrupt_while_modules_are_imported_is_told_in_a_line(
    tmp_path: Path, command: str, imports: str, number: signal.Signals | None
):
    """Before the command itself can catch it, wrapped too (None); in others' programs that use the package it is
    theirs."""
    stop = f"import os; os.kill(os.getpid(), {number})" if number else "raise RuntimeError() from KeyboardInterrupt()"
    (tmp_path / f"{imports}.py").write_text(stop)
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.getcwd()])}
    with Command([sys.executable, "-m", command], env=path) as ours:
        assert ours.finish(130) == "stopped; what was finished is kept\n"
    with Command([sys.executable, "-c", f"import lingu_ray, {imports}"], env=path) as theirs:
        assert ("Traceback" in theirs.finish(-number if number else 1)) == (number != signal.SIGTERM)
