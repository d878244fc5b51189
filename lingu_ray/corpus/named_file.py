"""Files that records name: one that is not there is told from a file system that fails."""

from __future__ import annotations

import errno
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lingu_ray.errors import UserError
from lingu_ray.storage import WAITS_S

T = TypeVar("T")

OF_THE_NAME = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EACCES, errno.EPERM),
}  # what further attempts cannot change


def read_named(path: Path, read: Callable[[Path], T]) -> T:
    """What `read` makes of a file, tried again where the file system fails.

    Raises:
        OSError: there is no such file, or none that may be read.
        ValueError: no file can have that name.
        UserError: the file system fails again and again, which is no fault of the record.
    """
    waits = iter(WAITS_S)
    while True:
        try:
            _check_is_file(path)
            return read(path)
        except OSError as error:
            if error.errno in OF_THE_NAME:
                raise
            if (wait := next(waits, None)) is None:
                raise UserError(
                    f"{path}: the file system does not give it ({error.strerror or error}); check its disk or share, "
                    "and the limit of open files, then start again"
                ) from error
            time.sleep(wait)


def _check_is_file(path: Path) -> None:
    """A pipe or a device would be waited for, or read without end."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder" if stat.S_ISDIR(mode) else "is no file")
