"""A process that starts: Ctrl-C and SIGTERM while a command still imports, and imports that take less.

Brings next to nothing.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from types import TracebackType

_PACKAGES = ("lingu_ray", "tuning")


def collect_less() -> None:
    """Let this process look for reference cycles after 10 000 new objects, not after 700.

    Torch, Transformers, Ray and MLflow make 600 000 that stay: a quarter of the time of importing them went there.
    """
    gc.set_threshold(10_000)


def terminate_as_interrupt() -> None:
    """Let SIGTERM, by which batch systems and `ray job stop` end a command, be to this process what Ctrl-C is."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def end_stopped() -> None:
    """End a command that Ctrl-C stopped; at once, for a Ray that is still starting may take minutes to shut down."""
    try:
        print("stopped; what was finished is kept", file=sys.stderr, flush=True)
    finally:
        os._exit(130)  # a Ray that it started ends with it


def end_without_traceback() -> None:
    """Where this process is a command, let an interrupt or SIGTERM that nothing catches end it so, wrapped or not."""
    if not _is_command():
        return
    terminate_as_interrupt()
    tell = sys.excepthook

    def end_or_tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, KeyboardInterrupt):
                end_stopped()
            cause = cause.__cause__  # classes that are being made wrap it in a RuntimeError
        tell(kind, error, trace)

    sys.excepthook = end_or_tell


def _is_command() -> bool:
    """Whether a command of ours is being imported: as `lingu-ray`, or by `python -m`."""
    if sys.argv[:1] != ["-m"]:
        return os.path.basename((sys.argv or [""])[0]) == "lingu-ray"
    return any(word.removeprefix("-m").partition(".")[0] in _PACKAGES for word in sys.orig_argv[1:])
