"""One writer a folder: a driver holds a lease on what it writes, and another driver is refused, or takes a dead one's.

The lease is a small JSON file that its holder writes again every few seconds. Who finds one watches it: a holder that
is alive writes it again, and one that is dead does not, so no two clocks are compared. A holder that was only slow
(suspended, cut off from the storage) finds another's name in the file, and so do its workers, before each step that
they record and each checkpoint that they write: they stop. Nothing is locked by the operating system, so any storage
will do that replaces files as a whole: in a bucket the lease is an object.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lingu_ray.atomic import is_alive, numbering, why_unwritable, write_json
from lingu_ray.errors import UserError
from lingu_ray.runtime.run_folder.job_stop import job_id
from lingu_ray.storage import below, delete, entries, parent, put, read_bytes

BEAT_S = 5.0
STALE_S = 30.0
"""Without a sign of life for so long a holder counts as dead."""
_POLL_S = 0.25
_OTHERS_WRITE_S = 0.1
"""Within this, and some times what storage takes, others have written who found a lease free before it was taken."""
LEASE_FILE = "driver.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """What the file says: who holds the lease.

    `namespace`: in which `process` is counted, for containers and machines may share a host's name. `job`: id of its
    Ray job.
    `beats` counts how often it was written, last at `time` (seconds of the holder's own clock). `ended`: given up.
    """

    owner: str
    host: str
    namespace: str
    process: int
    job: str | None
    time: float
    beats: int = 0
    ended: bool = False

    @property
    def is_dead(self) -> bool:
        """Whether its process is known to have ended; only processes of this machine are known."""
        here = (socket.gethostname(), numbering())
        return (self.host, self.namespace) == here and not is_alive(self.process)

    def describe(self) -> str:
        """Host, process, Ray job, and when it last showed a sign of life."""
        job = f", Ray job {self.job}" if self.job else ""
        ago = max(0, round(time.time() - self.time))
        return f"process {self.process} on {self.host}{job}; last sign of life {ago} s ago"

    def how_to_stop(self) -> str:
        """The command that lets it save and end."""
        stop = f"`ray job stop {self.job}`" if self.job else f"`kill {self.process}` on {self.host}"
        return f"Wait until it has ended, or stop it by {stop}, and run the same command again"


@dataclass(frozen=True)
class Lease:
    """A lease that was held: its file or object, and whose it is. Workers get a copy."""

    path: Path | str
    owner: str

    def holder(self) -> Holder | None:
        """Who holds it by now; None where the file is gone."""
        return _read(self.path)

    def require(self) -> None:
        """Raise UserError where another driver holds the lease by now, or the file is gone."""
        self.require_of(self.holder())

    def require_of(self, holder: Holder | None) -> None:
        """As `require`, where who holds it was read before."""
        if holder is None:
            raise UserError(f"{self.path} is gone, and nobody knows who writes this folder: run the same command again")
        if holder.owner != self.owner:
            raise UserError(
                f"{parent(str(self.path))} belongs to another driver now ({holder.describe()}), which took it over "
                "as this one had shown no sign of life; nothing more is written here"
            )


@contextmanager
def lease_on(folder: Path | str) -> Iterator[Lease]:
    """Hold the lease on a folder, or location, while the block runs.

    A folder that is not there is made, and removed where nothing else came into it. One that was there stays, be it a
    link, a mount point or the working directory.

    Raises:
        UserError: another driver that is alive holds it; names it, and how to stop it. The folder cannot be written.
    """
    path = below(folder, LEASE_FILE)
    made = isinstance(folder, Path) and not os.path.exists(folder)
    where = (socket.gethostname(), numbering(), os.getpid())
    mine = Holder(secrets.token_hex(8), *where, job_id(), time.time())
    try:
        _wait_for_the_other(path)
        _take(path, mine)
    except OSError as error:
        why = why_unwritable(Path(folder), error)
        raise UserError(f"{folder}: cannot be written: {why}. Correct that, or name another folder") from error
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, mine, ended), name="lease", daemon=True)
    heart.start()
    try:
        yield Lease(path, mine.owner)
    finally:
        ended.set()
        heart.join()
        holder = _read(path)
        if holder is not None and holder.owner == mine.owner and _is_alone(path):
            delete(path) if isinstance(path, str) else path.unlink()
            if made:
                with suppress(OSError):  # another driver has come into it
                    Path(folder).rmdir()


def _take(path: Path | str, mine: Holder) -> None:
    """Write the lease, which nobody holds. Raises UserError where another that found it so at the same moment has it:
    of several the last one to write."""
    begin = time.monotonic()
    _write(path, mine)
    time.sleep(_OTHERS_WRITE_S + 5 * (time.monotonic() - begin))
    now = _read(path)
    if now is not None and now.owner != mine.owner:
        raise UserError(
            f"{parent(str(path))}: another driver took it at this moment ({now.describe()}). {now.how_to_stop()}"
        )


def is_held(folder: Path) -> bool:
    """Whether a driver that works in the folder has given a sign of life lately, by this machine's clock."""
    holder = _read(folder / LEASE_FILE)
    return holder is not None and not (holder.ended or holder.is_dead) and time.time() - holder.time < STALE_S


def _beat(path: Path | str, mine: Holder, ended: threading.Event) -> None:
    """Write the file again and again, and in the end once more, as long as it is ours."""
    while True:
        over = ended.wait(BEAT_S)
        with suppress(OSError, UserError):  # a storage that is away for a moment; for long, and others take over
            holder = _read(path)
            if holder is None or holder.owner != mine.owner:
                return
            mine = replace(mine, time=time.time(), beats=mine.beats + 1, ended=over)
            _write(path, mine)
        if over:
            return


def _wait_for_the_other(path: Path | str) -> None:
    """Return where nobody holds the lease, or its holder is dead. Raises UserError at a sign of its life."""
    folder, first = parent(str(path)), _read(path)
    if first is None or first.ended:
        return
    if not first.is_dead:
        log.info("%s: another driver wrote it (%s): looking for a sign of life", folder, first.describe())
    give_up = time.monotonic() + STALE_S
    while not first.is_dead and time.monotonic() < give_up:
        time.sleep(_POLL_S)
        now = _read(path)
        if now is None or now.ended:
            return
        if (now.owner, now.beats) != (first.owner, first.beats):
            raise UserError(f"{folder}: another driver writes it ({now.describe()}). {now.how_to_stop()}")
    log.warning("%s: taken over from a driver that is dead (%s)", folder, first.describe())


def _read(path: Path | str) -> Holder | None:
    try:
        content = read_bytes(path) if isinstance(path, str) else path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is cut off, or of another version, so nobody knows who writes this folder ({error}): where no "
            "command does, remove that file, and run the same command again"
        ) from error


def _write(path: Path | str, holder: Holder) -> None:
    if isinstance(path, str):
        put(json.dumps(asdict(holder)).encode(), path)
    else:
        write_json(path, asdict(holder))


def _is_alone(path: Path | str) -> bool:
    """Whether nothing else is where the lease is."""
    if isinstance(path, str):
        return [entry.name for entry in entries(parent(path))] == [LEASE_FILE]
    return [*path.parent.iterdir()] == [path]
