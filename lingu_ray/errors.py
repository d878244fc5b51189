"""Errors that the user can fix, interruptions by the user, and how commands report both."""

from __future__ import annotations

import errno
import gc
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from io import TextIOWrapper
from typing import Any, TextIO, cast

from lingu_ray.commands import as_called
from lingu_ray.starting import collect_less, end_stopped, terminate_as_interrupt

_WRAPPED = ("cause", "health_check_failure", "controller_failure")  # in errors of Ray and Ray Train
_FULL = re.compile(r".*(?:No space left on device|Disk quota exceeded).*")  # Rust and C++ have these words, too
# A context, a stream, pinned memory; a handle of cuBLAS or cuDNN; a buffer of NCCL: none comes from torch's allocator
_FULL_GPU = re.compile(r".*(?:error: out of memory|_STATUS_ALLOC_FAILED|Cuda failure.*out of memory).*")

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tabs and line feeds


class UserError(Exception):
    """Something in the settings, the data or the machine that the user can fix.

    The message names the setting, row or file and the fix; commands print it without a traceback.
    """


class Interrupted(Exception):
    """The run was asked to stop, and its state is saved."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and all that it wraps, outermost first, be it by `raise … from`, by Ray or by Ray Train.

    The error of a Ray task is of its cause's type, too; of the two only the cause comes.
    """
    left, seen = [error], set[int]()
    while left:
        one = left.pop()
        if one is None or id(one) in seen:  # errors may be their own causes
            continue
        seen.add(id(one))
        if not isinstance(getattr(one, "cause", None), BaseException):
            yield one
        inner = [getattr(one, name, None) for name in _WRAPPED]
        inner += (getattr(one, "worker_failures", None) or {}).values()
        wrapped = [each for each in inner if isinstance(each, BaseException)]
        left += reversed(wrapped or [one.__cause__])


def user_error(error: BaseException | None) -> UserError | None:
    """A copy of the `UserError` that an error is or wraps, to be raised from it; None where there is none."""
    found = next((one for one in causes(error) if isinstance(one, UserError)), None)
    return None if found is None else UserError(str(found))  # itself, raised from what wraps it, would be a circle


def full_disk(error: BaseException | None) -> UserError | None:
    """What to tell where an error is, or wraps, that of a disk without room; None where none is."""
    found = next(filter(None, (_FULL.search(str(one)) for one in causes(error))), None)
    if found is None:
        return None
    return UserError(f"no disk space: {found[0]}. Free some, and run the same command again: what was finished is kept")


def no_permission(error: BaseException | None) -> UserError | None:
    """What to tell where an error is, or wraps, that of a file or folder that this user may not use, or not write."""
    ours = (one for one in causes(error) if isinstance(one, OSError) and one.filename)
    found = next((one for one in ours if one.errno in (errno.EACCES, errno.EPERM, errno.EROFS)), None)
    if found is None:
        return None
    return UserError(f"{found.filename}: {found.strerror}. Open it and what it lies in to this user, or name another")


def full_gpu(error: BaseException) -> str | None:
    """What CUDA or one of its libraries says where it finds no memory; None where an error is another one.

    These have no type of their own: that of torch's allocator is `torch.OutOfMemoryError`.
    """
    found = _FULL_GPU.search(str(error)) if isinstance(error, RuntimeError) else None
    return None if found is None else found[0].strip()


def first_line(error: object) -> str:
    """The first line of an error's message, or of what else is told; empty where it has none."""
    return str(error).strip().partition("\n")[0]


def printable(text: str) -> str:
    """Text of data, files or models with its control characters escaped: a terminal would obey them."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def some(names: Sequence[object], count: int = 3) -> str:
    """The first names, and how many more there are: `a, b, c and 4 more`."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(map(str, names[:count])) + more


class _Printable(logging.Formatter):
    """A log record's message, and the traceback of its error, as a terminal may have them."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _Lasting:
    """A text stream whose writes raise nothing where nobody takes them: what is shown of a run must not end it.

    So it is when the terminal was closed, when Ctrl-C ended `tee` as well, or when the disk of a log is full.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self.stream.flush()


def _prepare_streams() -> None:
    """Make the standard streams take any text: what is shown of a run must not end it."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started the command
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as of stderr: not every encoding has all characters
    sys.stderr = cast(TextIO, _Lasting(sys.stderr))


def _require_usable_process() -> None:
    """Raise UserError where Python was started in a way, or from a place, in which no command can work."""
    if sys.flags.optimize > 1:
        raise UserError(
            "Python was told to drop docstrings (-OO, PYTHONOPTIMIZE=2), from which help is made and without which "
            "Transformers fails: leave that out"
        )
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("the folder that this command was started in is gone: cd to one that is there") from error
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError(f"{error.strerror}: set TMPDIR to a folder that can be written") from error


def run_command(main: Callable[[list[str]], None]) -> None:
    """Run a module's `main` on the command line's arguments: exit 1 after a `UserError`, on a full disk and where
    permission is missing, 130 after Ctrl-C and SIGTERM."""
    collect_less()
    terminate_as_interrupt()
    _prepare_streams()
    (shown := logging.StreamHandler()).setFormatter(_Printable())
    logging.basicConfig(level=logging.INFO, handlers=[shown])
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)  # each retry, twice
    try:
        _require_usable_process()
        main(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        sys.exit(as_called(f"error: {printable(str(error))}"))
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        end_stopped()
    except BrokenPipeError:  # the reader has closed the output: `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if (told := full_disk(error) or no_permission(error)) is None:
            raise
        sys.exit(as_called(f"error: {printable(str(told))}"))
    finally:
        gc.freeze()  # else the interpreter, as it ends, looks through all that was imported, for seconds
