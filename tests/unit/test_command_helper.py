"""The helper by which tests start commands: nothing that a command started is left, and no wait is endless."""

import os
import sys

import psutil
import pytest
from commands import Command

pytestmark = pytest.mark.slow  # starts processes, and waits for them

SECONDS = str(10_000_000 + os.getpid())  # by which this test's sleepers are known
# Three sleepers: a child, a grandchild whose parent has ended, and one in a session of its own.
CODE = """
import subprocess, sys, time
subprocess.Popen(["sleep", "{seconds}"])
subprocess.run(["bash", "-c", "sleep {seconds} & true"])
if {alive}:
    subprocess.Popen(["sleep", "{seconds}"], start_new_session=True)
    time.sleep({seconds})
"""


def sleepers() -> list[psutil.Process]:
    """The processes that the command leaves."""
    return [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["sleep", SECONDS]]


@pytest.mark.parametrize("alive", [True, False])
def test_nothing_is_left(alive: bool) -> None:
    """What it started is killed with it; where it has ended itself, what is left of its session."""
    with Command([sys.executable, "-c", CODE.format(alive=alive, seconds=SECONDS)]) as command:
        if alive:
            command.wait_for(lambda: len(sleepers()) == 3)
        else:
            command.finish()
            assert len(sleepers()) == 2
    assert not sleepers()


def test_waits_end() -> None:
    """A wait ends with what was printed, where the command ends too early, hangs, or fails."""
    with Command([sys.executable, "-c", "print('said')"]) as command:
        with pytest.raises(AssertionError, match=r"(?s)ended with 0 too early.*said"):
            command.wait_for(lambda: False)
        with pytest.raises(AssertionError, match=r"(?s)ended with 0:.*said"):
            command.finish(code=1)
    with Command([sys.executable, "-c", "import time; time.sleep(1234.5)"]) as command:
        with pytest.raises(AssertionError, match="has not ended within"):
            command.finish(seconds=0.1)
        with pytest.raises(AssertionError, match="in vain"):
            command.wait_for(lambda: False, seconds=0.1)
