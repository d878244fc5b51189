"""Ctrl-C ends what has nothing to save, also where the exception that it raises is lost."""

import signal
import subprocess
import sys

import pytest

from lingu_ray import interrupt


def test_a_lost_interrupt_is_raised_again():
    """Code that swallows the exception does not go on past the end; the handler from before is back."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupt.ended_by_interrupt():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            swallowed = True
    assert swallowed and signal.getsignal(signal.SIGINT) is before


def test_what_hangs_after_an_interrupt_is_ended():
    """A process that swallows it and waits for ever ends with the exit code of an interruption."""
    code = """
import signal, threading
from lingu_ray import interrupt
interrupt._GIVE_UP_S = 0.5
with interrupt.ended_by_interrupt():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        threading.Event().wait()
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 130


def test_a_process_that_took_the_interrupt_lives_on():
    """Where the exception has left, the caller decides: nothing ends the process later."""
    code = """
import signal, time
from lingu_ray import interrupt
interrupt._GIVE_UP_S = 0.5
try:
    with interrupt.ended_by_interrupt():
        signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    time.sleep(1.5)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
