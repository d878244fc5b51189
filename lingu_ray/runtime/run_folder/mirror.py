"""Files of a local folder, put into a bucket as they change."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lingu_ray import storage
from lingu_ray.errors import UserError
from lingu_ray.runtime.run_folder.lease import Lease
from lingu_ray.waiting import waiting

POLL_S = 1.0
_REST = 50
"""A file that grows is put again after so many times the seconds that it took: the longer, the more rarely."""

Stamp = tuple[int, int, int]  # what changes when a file does: time of change in ns, bytes, inode

log = logging.getLogger(__name__)


@contextmanager
def repeated(action: Callable[[], None], what: str) -> Iterator[None]:
    """Call `action` about every second in a thread while the block runs; where it fails it is tried again.

    `what`: begins the warning when it fails.
    """
    over = threading.Event()

    def repeat() -> None:
        failing = False
        while not over.wait(POLL_S):
            try:
                action()
                failing = False
            except (UserError, OSError) as error:
                if not failing:
                    log.warning("%s, and tried again: %s", what, error)
                failing = True

    thread = threading.Thread(target=repeat, name="repeated", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        with waiting("storage to take what is being put", "see whether it answers"):
            thread.join()


class Mirror:
    """Puts the files of a folder to a location: from a thread, a second or so after they change, and all by `flush`.

    Files that vanish are deleted there, but nothing is once the folder itself was removed or is another one.

    Args:
        folder: the local folder; what is in it now counts as put.
        location: where its files go.
        lease: on the location, or one above it; nothing is written without it.
        owned: whether a file, by its path from the folder, is put at all: others write other objects there.
        also: what the thread does besides.
    """

    def __init__(
        self,
        folder: Path,
        location: str,
        lease: Lease,
        owned: Callable[[str], bool],
        also: Callable[[], None] = lambda: None,
    ):
        self.folder, self.location, self.lease, self.owned, self.also = folder, location, lease, owned, also
        self.opened = os.open(folder, os.O_RDONLY)  # until the end: no other folder gets its inode
        self.known = self._stamps()
        self.rested: dict[str, float] = {}
        self.lock = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Put what changes while the block runs, and the rest at its end (errors as `flush`)."""
        try:
            with repeated(self._tick, f"{self.location}: not everything is put there"):
                yield
        except BaseException:
            try:
                self.flush()
            except UserError as error:
                log.error("%s", error)
            raise
        else:
            self.flush()
        finally:
            os.close(self.opened)

    def flush(self) -> None:
        """Put all that has changed. Raises UserError where that cannot be done, or another has taken the lease."""
        with self.lock:
            now = self._stamps()
            self._put([name for name in now if self.known.get(name) != now[name]], now)

    def _tick(self) -> None:
        self.also()
        with self.lock:
            now, clock = self._stamps(), time.monotonic()
            changed = [name for name in now if self.known.get(name) != now[name] and self.rested.get(name, 0) <= clock]
            self._put(changed, now)

    def _put(self, changed: list[str], now: dict[str, Stamp]) -> None:
        gone = [name for name in self.known if name not in now]
        if gone:
            self._check_folder()
        if changed or gone:
            self.lease.require()
        for name in changed:
            begin = time.monotonic()
            with suppress(FileNotFoundError):  # it has vanished since
                storage.put(self.folder / name, storage.join(self.location, name))
            self.known[name] = now[name]
            self.rested[name] = time.monotonic() + _REST * (time.monotonic() - begin)
        for name in gone:
            storage.delete(storage.join(self.location, name))
            del self.known[name]

    def _check_folder(self) -> None:
        """Raise UserError where somebody removed the folder: what is gone with it was not given up."""
        if not self.folder.is_dir() or not os.path.samestat(os.fstat(self.opened), self.folder.stat()):
            raise UserError(
                f"{self.folder} was removed while it was in use: {self.location} is left as it was; run the same "
                "command again"
            )

    def _stamps(self) -> dict[str, Stamp]:
        """What there is to put, smallest first: a small file, such as STOP, does not wait for a large one."""
        found = {}
        for folder, _, files in os.walk(self.folder):
            for path in (Path(folder, file) for file in files):
                name = str(path.relative_to(self.folder))
                with suppress(FileNotFoundError):
                    if self.owned(name):
                        about = path.stat()
                        found[name] = (about.st_mtime_ns, about.st_size, about.st_ino)
        return dict(sorted(found.items(), key=lambda item: (item[1][1], item[0])))
