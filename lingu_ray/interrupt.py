"""Ctrl-C and its like: what saves first, and what ends at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_GIVE_UP_S = 20.0


def heed_interrupts() -> None:
    """Let Ctrl-C reach this process and those that it starts where a shell has it ignored, as in a background script.

    For a program that stops others by it: what is ignored is inherited.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def save_on_interrupt(save: Callable[[], None]) -> Iterator[threading.Event]:
    """The first Ctrl-C, SIGTERM or SIGHUP calls `save`, which asks the work inside to save and end; the second one ends
    it.

    `save` runs in the signal handler and must return soon; the second signal raises `KeyboardInterrupt`. Yields an
    event that is set by the first. A terminal that is closed sends SIGHUP, often twice, so that one never ends the
    work; where it is ignored, as by `nohup`, it stays so. Outside the main thread, which alone gets signals, nothing
    is handled.
    """
    asked = threading.Event()

    def handle(number: int, *_: object) -> None:
        if not asked.is_set():
            asked.set()
            save()
        elif number != signal.SIGHUP:
            raise KeyboardInterrupt

    closed = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    with _handled_by(handle, signal.SIGINT, signal.SIGTERM, *closed):
        yield asked


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Ctrl-C and SIGTERM end what runs inside, which has nothing to save, even where the `KeyboardInterrupt` is lost.

    It is lost where Python raises it in a callback, which may then leave a lock behind: so it is raised again at the
    end, and the process exits with 130 if that takes more than 20 seconds. Python's word on the loss is not printed.
    Ray, where it starts inside, takes SIGTERM for itself, and exits with its number; that ends with the block. Outside
    the main thread nothing is handled.
    """
    asked = threading.Event()
    watch = threading.Timer(_GIVE_UP_S, os._exit, [130])
    watch.daemon = True

    def handle(*_: object) -> None:
        if not asked.is_set():
            asked.set()
            watch.start()
        raise KeyboardInterrupt

    try:
        with _handled_by(handle, signal.SIGINT, signal.SIGTERM), _lost_in_silence():
            yield
    except SystemExit as ended:
        if ended.code != signal.SIGTERM:
            raise
        asked.set()  # Ray's own handler, which it sets as it starts, has heard it
    finally:
        watch.cancel()  # what came out of here is in its caller's hands
    if asked.is_set():
        raise KeyboardInterrupt


@contextmanager
def _lost_in_silence() -> Iterator[None]:
    """No traceback of a `KeyboardInterrupt` that Python drops; of all else as before."""
    tell = sys.unraisablehook

    def tell_others(dropped: sys.UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            tell(dropped)

    sys.unraisablehook = tell_others
    try:
        yield
    finally:
        sys.unraisablehook = tell


@contextmanager
def _handled_by(handle: Callable[..., Any], *signals: signal.Signals) -> Iterator[None]:
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handle) for number in signals if in_main_thread}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
