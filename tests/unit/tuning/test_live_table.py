"""The live table of a sweep says what its trials are."""

import os
import pty
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lingu_ray.runtime.run_folder import mirror
from tuning.outcome import Outcome
from tuning.progress import SweepProgress
from tuning.space import Space

TARGETS = [["q_proj"], ["q_proj", "v_proj"]]


def read_all(terminal: int) -> str:
    """What is written to a terminal until it is closed."""
    written = b""
    while True:
        try:
            written += os.read(terminal, 2**16)
        except OSError:  # closed
            return written.decode()


def test_lists_are_shown_with_their_brackets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a terminal they are no marks of style, which would be left out; and `:on:` is no emoji."""
    monkeypatch.setenv("COLUMNS", "120")
    cases = {"kd:on:": {"distill.w_kd": 1}}
    space = Space.model_validate(
        {"name": "s", "base": "demo", "cases": cases, "search": {"train.lora.targets": {"choice": TARGETS}}}
    )
    for number, targets in enumerate(TARGETS):
        Outcome(f"trial-{number}", {"train.lora.targets": targets}, "kd:on:", 0).write(tmp_path / f"trial-{number}")
    controller, terminal = pty.openpty()
    with ThreadPoolExecutor() as pool:
        shown = pool.submit(read_all, controller)
        with os.fdopen(terminal, "w") as stderr:
            monkeypatch.setattr(sys, "stderr", stderr)
            with SweepProgress(space, tmp_path).running():
                pass
            monkeypatch.undo()
    os.close(controller)
    for targets in TARGETS:
        assert f"kd:on: targets=[{', '.join(targets)}] seed 0" in shown.result()


def test_an_outcome_that_cannot_be_read_for_a_while_does_not_end_the_display(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    """A file that is half there, or of a file system that is away for a moment: it is told once, and tried again."""
    monkeypatch.setattr(mirror, "POLL_S", 0.05)
    space = Space.model_validate({"name": "s", "base": "demo", "search": {"distill.w_kd": {"choice": [1, 2]}}})
    outcome = tmp_path / "trial-0" / "trial.json"
    outcome.parent.mkdir()
    outcome.write_text("{", encoding="utf-8")
    shown = ""
    with SweepProgress(space, tmp_path).running():
        give_up = time.monotonic() + 60
        while not caplog.records and time.monotonic() < give_up:
            time.sleep(0.05)
        Outcome("trial-0", {"distill.w_kd": 1}, None, 0).write(outcome.parent)
        while "trial-0: running" not in shown and time.monotonic() < give_up:
            time.sleep(0.05)
            shown += capsys.readouterr().err
        assert "trial-0: running" in shown
    assert "s: trials are not shown, and tried again" in caplog.text
