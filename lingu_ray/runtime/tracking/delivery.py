"""Brings a run's records to a tracker, from a thread: training waits for none, and one that fails gets them later."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from lingu_ray.config.flat import without_credentials
from lingu_ray.errors import first_line
from lingu_ray.runtime.run_folder.records import LoggedSteps, Record, RecordReader

_POLL_S = 0.5
_LONGEST_WAIT_S = 15.0
_AT_ONCE = 50
"""Records sent together; what was sent is not sent again when a later part fails."""


class Delivery:
    """Follows metrics.jsonl and sends its records to one tracker in order, again and again where that fails.

    Args:
        tracker: its name in messages.
        path: metrics.jsonl, which keeps what was not delivered for the next start of the run.
        known: the newest steps that the tracker has.
        send: takes records; may raise, and may be given records again that it has taken.
        close: ends the tracker when all was sent.
        say: tells people that the tracker fails, and that it works again.
    """

    def __init__(
        self,
        tracker: str,
        path: Path,
        known: LoggedSteps,
        send: Callable[[list[Record]], None],
        close: Callable[[], None],
        say: Callable[[str], None],
    ):
        self.tracker, self.send, self.close, self.say = tracker, send, close, say
        self.reader = RecordReader(path, known)
        self.pending: list[Record] = []
        self.failing = self.delivered = False
        self.wait_s = _POLL_S
        self.last_call: float | None = None
        self.thread = threading.Thread(target=self._run, daemon=True, name=f"deliver to {tracker}")
        self.thread.start()

    def finish(self, within_s: float) -> bool:
        """Deliver what is left, trying for so many seconds; returns whether all was delivered."""
        self.last_call = time.monotonic() + within_s
        self.thread.join(within_s + _POLL_S)
        if not self.delivered:
            missing = f"the newest {len(self.pending)}" if self.pending else "all"
            self.say(
                f"{self.tracker} does not have {missing} records; they are in {self.reader.path}, and the same command "
                "delivers them"
            )
        return self.delivered and not self.thread.is_alive()

    def _run(self) -> None:
        while True:
            last_call = self.last_call
            done = self._deliver()
            if last_call is not None and (done or time.monotonic() > last_call):
                self.delivered = done
                return self._close()
            time.sleep(self.wait_s if last_call is None else _POLL_S)

    def _close(self) -> None:
        try:
            self.close()
        except Exception as error:
            self.say(without_credentials(f"{self.tracker} could not be closed: {error}"))

    def _deliver(self) -> bool:
        """Read what is new, and send all that is left; returns whether that was possible, and says it where not."""
        try:
            self.pending += self.reader.new_records()
            while self.pending:
                self.send(self.pending[:_AT_ONCE])
                del self.pending[:_AT_ONCE]
        except Exception as error:  # whatever a client raises, training goes on
            if not self.failing:
                reason = without_credentials(first_line(error))
                self.say(f"{self.tracker} takes no metrics now, and gets them later: {reason}")
            self.failing, self.wait_s = True, min(2 * self.wait_s, _LONGEST_WAIT_S)
            return False
        if self.failing:
            self.say(f"{self.tracker} takes metrics again")
        self.failing, self.wait_s = False, _POLL_S
        return True
