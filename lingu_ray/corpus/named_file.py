"""Reads files that records name: a missing file is the record's fault, a failing file system is tried again."""

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
}  # errors that do not go away by trying again


def read_named(path: Path, read: Callable[[Path], T]) -> T:
    """The result of `read` for a file; tries again where the file system fails.

    Raises:
        OSError: the file is missing, or may not be read.
        ValueError: no file can have that name.
        UserError: the file system keeps failing.
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
    """Refuse pipes and devices: reading would wait for ever, or never end."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder" if stat.S_ISDIR(mode) else "is no file")
