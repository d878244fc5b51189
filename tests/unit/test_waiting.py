"""A wait that takes long is said, with what is waited for and where to look; one that does not is not."""

import logging
import os
import threading
import time

import pytest

from lingu_ray import waiting
from lingu_ray.atomic import locked
from lingu_ray.waiting import Wait


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """Waits that are said after a tenth of a second."""
    monkeypatch.setattr(waiting, "FIRST_WORD_S", 0.1)
    monkeypatch.setattr(waiting, "_POLL_S", 0.01)
    monkeypatch.setattr(waiting, "_watcher", None)  # of another test, which polls twice a second
    monkeypatch.setattr(waiting, "_known", {})


def wait_until(condition):
    """Wait until it holds."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_long_wait_is_said_again_at_twice_the_time():
    """And the next one only when it takes twice as long as the longest."""
    said = []
    wait = Wait("the teacher", lambda: "see its log", said.append, first_s=10)
    wait.poll()
    assert not said
    wait.since -= 15
    wait.poll(), wait.poll()
    assert len(said) == 1 and said[0].startswith("waiting for the teacher since ") and said[0].endswith("see its log")
    wait.since -= 20
    wait.poll(), wait.poll()
    assert len(said) == 2
    wait.came()
    wait.since -= 60
    wait.poll()
    assert len(said) == 2
    wait.since -= 20
    wait.poll()
    assert len(said) == 3


def test_what_holds_a_lock_is_looked_for(tmp_path, caplog):
    """A process that waits for another's lock says so while it waits, and no more once it has it."""
    taken, over = threading.Event(), threading.Event()

    def hold():
        with locked(tmp_path / "lock"):
            taken.set()
            over.wait()

    other = threading.Thread(target=hold)
    other.start()
    taken.wait()
    told = f"waiting for the lock {tmp_path}/lock since"
    letting_go = threading.Thread(target=lambda: (wait_until(lambda: told in caplog.text), over.set()))
    letting_go.start()
    with locked(tmp_path / "lock"):
        letting_go.join()
    assert not waiting._active
    other.join()


def test_a_fork_watches_its_own_waits(caplog):
    """A forked process has none of its parent's threads, and says what it waits for all the same."""
    with waiting.waiting("the parent", "nowhere"):
        wait_until(lambda: "the parent" in caplog.text)
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        handler = logging.Handler()
        handler.emit = lambda record: os.write(writing, record.getMessage().encode())
        logging.getLogger().handlers = [handler]
        with waiting.waiting("the child", "nowhere"):
            time.sleep(30)
        os._exit(0)
    os.close(writing)
    try:
        assert os.read(reading, 1000).startswith(b"waiting for the child since")
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(reading)
