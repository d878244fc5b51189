"""Reads of what workers write, on storage that may fail for a moment: such a fault ends nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from lingu_ray.errors import UserError

T = TypeVar("T")


class PatientRead(Generic[T]):
    """A read that is repeated, and gives what is new each time; that it fails is said once, until it works again.

    `what`: begins the message; `say` tells people.
    """

    def __init__(self, what: str, read: Callable[[], list[T]], say: Callable[[str], None]):
        self.what, self.action, self.say = what, read, say
        self.failing = False

    def read(self, waits: Sequence[float] = ()) -> list[T]:
        """What is new; nothing where storage fails, also after further attempts, `waits` seconds apart."""
        for wait in (*waits, None):
            try:
                found = self.action()
            except (OSError, ValueError, UserError) as error:
                if not self.failing:
                    self.say(f"{self.what} cannot be read now, and are read later: {error}")
                self.failing = True
                if wait is not None:
                    time.sleep(wait)
            else:
                self.failing = False
                return found
        return []
