"""The live line of a run on a terminal, and its lines without one."""

import fcntl
import os
import struct
import sys
import termios

import pytest

from lingu_ray import live
from lingu_ray.runtime.tracking.progress import Progress

OF_STEP = {"loss": 1.0, "ce": 1.0, "kd": None, "tokens_per_s": 1.0, "data_wait": 0.0, "teacher_wait": 0.0}


def test_time_left_is_that_of_the_steps_that_were_seen(monkeypatch: pytest.MonkeyPatch, capsys):
    """None at the first step, whose start nobody saw; then by the steps since, of a resumed run too."""
    now = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    progress = Progress("mine", 1000)
    for step, now[0] in ((101, 0.0), (103, 20.0)):
        progress.show({"step": step, **OF_STEP})
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("mine: step 101/1000  loss 1.000 ") and "ETA" not in first
    assert second.endswith("ETA 149:30")  # 20 s for two steps, and 897 left


def test_figures_fit_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch):
    """Losses and shares of waiting, which the guide says to look at, are in the line; the bar takes what is left."""
    screen, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with os.fdopen(screen, "rb") as shown, os.fdopen(terminal, "w", encoding="utf-8") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        progress = Progress("demo", 240)
        progress.show({"step": 120, **OF_STEP, "kd": 0.123, "teacher_wait": 0.12})
        progress.close()
        line = os.read(shown.fileno(), 4096).decode().splitlines()[-1]
    assert "loss 1.000 ce 1.000 kd 0.123 data 0% teacher 12%" in line
