"""Errors that the user can fix, interruptions by the user, and how commands report both."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from lingu_ray.commands import as_called


class UserError(Exception):
    """Something in the settings, the data or the machine that the user can fix.

    The message names the setting, row or file and the fix; commands print it without a traceback.
    """


class Interrupted(Exception):
    """The run was asked to stop, and its state is saved."""


def user_error(error: BaseException | None) -> UserError | None:
    """The `UserError` that an error is, or that Ray or `raise … from` wrapped in it; None where there is none."""
    while error is not None:
        if isinstance(error, UserError):
            return UserError(str(getattr(error, "cause", None) or error))
        error = getattr(error, "cause", None) or error.__cause__
    return None


def run_command(main: Callable[[list[str]], None]) -> None:
    """Run a module's `main` on the command line's arguments: exit 1 after a `UserError`, 130 after Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        sys.exit(as_called(f"error: {error}"))
    except Interrupted as stopped:
        print(stopped)
        sys.exit(130)
    except KeyboardInterrupt:
        print("stopped; what was finished is kept", file=sys.stderr, flush=True)
        os._exit(130)  # at once: a Ray that is still starting may take minutes to shut down; it ends with this process
    except BrokenPipeError:  # the reader has closed the output: `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
