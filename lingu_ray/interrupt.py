"""Ctrl-C while nothing is there to save yet."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_GIVE_UP_S = 20.0


@contextmanager
def ended_by_interrupt() -> Iterator[None]:
    """Ctrl-C ends what runs inside, even where the `KeyboardInterrupt` is lost.

    It is lost where Python raises it in a callback, which may then leave a lock behind: so it is raised again at the
    end, and after a while the process ends whatever holds it. Other threads than the main one are left as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watch = threading.Timer(_GIVE_UP_S, os._exit, [130])
    watch.daemon = True

    def end(*_: object) -> None:
        if watch.ident is None:  # not started
            watch.start()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        watch.cancel()
    if watch.ident is not None:
        raise KeyboardInterrupt
