"""Waits that may never end: one that takes long is said in a line, with what is waited for and where to look.

A process that hangs looks to its peers like one that works, so most waits end nothing: they say so, and again each time
that they have taken twice as long.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FIRST_WORD_S = 60.0
_POLL_S = 0.5
RAY_STATUS = "`ray status` says whether there is room for its process, which else computes or hangs"
"""Where to look for a task of Ray's."""

log = logging.getLogger(__name__)


class Wait:
    """A wait for what comes again and again; `poll` says that it has not come yet.

    Args:
        what: what is waited for.
        look: says what to look at, or what helps.
        say: takes the line.
        first_s: seconds after which it is said first; later where it ever took more than half of it.
    """

    def __init__(self, what: str, look: Callable[[], str], say: Callable[[str], None], first_s: float):
        self.what, self.look, self.say, self.first_s = what, look, say, first_s
        self.longest = 0.0
        self.begin()

    def begin(self) -> None:
        """Wait from now on."""
        self.since, self.clock = time.monotonic(), time.strftime("%H:%M:%S")
        self.next_word = max(self.first_s, 2 * self.longest)

    def came(self) -> None:
        """It has come; wait for the next one."""
        self.longest = max(self.longest, time.monotonic() - self.since)
        self.begin()

    def poll(self) -> None:
        """Say what is waited for, where it is time to."""
        waited = time.monotonic() - self.since
        if waited >= self.next_word:
            self.next_word = 2 * waited
            self.say(f"waiting for {self.what} since {self.clock} ({waited:.0f} s): {self.look()}")


@contextmanager
def waiting(what: str, look: str | Callable[[], str], level: int = logging.WARNING) -> Iterator[None]:
    """Log what the block waits for, as `Wait` says it; the longest wait for `what` in this process counts.

    `level`: below WARNING for what others, which are waited for as well, say themselves.
    """
    told = look if callable(look) else lambda: look
    wait = _known.pop(what, None) or Wait(what, told, lambda line: log.log(level, line), FIRST_WORD_S)
    wait.look = told
    wait.begin()
    _watch(wait)
    try:
        yield
    finally:
        _active.pop(id(wait), None)
        wait.came()
        _known[what] = wait


_active: dict[int, Wait] = {}
_known: dict[str, Wait] = {}
"""By what was waited for: the wait that ended last."""
_starting = threading.Lock()
_watcher: threading.Thread | None = None


def _watch(wait: Wait) -> None:
    """Have a wait polled; by one thread, for a thread for each would delay what is waited for."""
    global _watcher
    _active[id(wait)] = wait
    with _starting:
        if _watcher is None or not _watcher.is_alive():  # none, or that of the process that this one is a fork of
            _watcher = threading.Thread(target=_poll_active, name="waits", daemon=True)
            _watcher.start()


def _poll_active() -> None:
    while True:
        time.sleep(_POLL_S)
        for wait in tuple(_active.values()):
            wait.poll()
