"""metrics.jsonl: each step once, whatever crashed; the tail follows it."""

import errno
import os
import tracemalloc
from pathlib import Path

import pytest

from lingu_ray.errors import UserError, full_disk
from lingu_ray.runtime.run_folder.patient_read import PatientRead
from lingu_ray.runtime.run_folder.records import JsonLines, LoggedSteps, Newest, RecordReader, read_records


def test_steps_to_be_done_again_are_dropped(tmp_path):
    """Going on from step 2 drops later lines and a line that a crash cut short."""
    lines = JsonLines(tmp_path / "m.jsonl")
    for step in (1, 2, 3):
        lines.append({"step": step, "loss": float(step)})
    with lines.path.open("a") as file:
        file.write('{"step": 4, "lo')
    lines.drop_after(2)
    lines.append({"step": 3, "loss": 9.0})
    assert [(r["step"], r["loss"]) for r in read_records(lines.path)] == [(1, 1.0), (2, 2.0), (3, 9.0)]


def test_a_full_disk_is_told_with_the_file():
    """Which of the machine's disks it is, the command says."""
    with pytest.raises(OSError) as caught:
        JsonLines(Path("/dev/full")).append({"step": 1})
    assert str(full_disk(caught.value)).startswith(
        "no disk space: [Errno 28] No space left on device: '/dev/full'. Free"
    )


def test_a_long_file_is_read_line_by_line(tmp_path):
    """What is known of it takes no memory, nor what is dropped: a million steps are resumed as a thousand are."""
    path, count = tmp_path / "m.jsonl", 5_000
    path.write_text("".join(f'{{"step": {step}, "loss": 0.5}}\n' for step in range(1, count + 1)))
    tracemalloc.start()
    assert RecordReader(path, LoggedSteps(count, 0)).new_records() == []
    JsonLines(path).drop_after(count // 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < path.stat().st_size
    assert [read_records(path)[at]["step"] for at in (0, -1)] == [1, count // 2]


@pytest.mark.parametrize("line", [b'{"step": 2, "lo', b"\0\0\0", b"\xff\xfe\xd8", b"[" * 100_000], ids=len)
def test_a_line_that_is_none_is_named(tmp_path, line):
    """Not the last one, which a crash may cut: a file that was damaged later is told with its line."""
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(UserError, match=rf"{path}:2: the line is cut off, or no JSON"):
        read_records(path)


@pytest.mark.parametrize("line", ["[1, 2]", "3", "null"])
def test_a_line_of_another_file_is_named(tmp_path, line):
    """JSON that is no record, as where lines of another file got among them."""
    path = tmp_path / "m.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(UserError, match=rf"{path}:2: the line is no record, but"):
        read_records(path)


def test_tail_sees_every_line_once_and_whole(tmp_path):
    """Half a line waits for its end; after a cut, steps done again are not told again."""
    tail = RecordReader(tmp_path / "m.jsonl")
    assert tail.new_records() == []
    lines = JsonLines(tail.path)
    lines.append({"step": 1})
    with tail.path.open("a") as file:
        file.write('{"step": ')
    assert tail.new_records() == [{"step": 1}]
    with tail.path.open("a") as file:
        file.write("2}\n")
    assert tail.new_records() == [{"step": 2}]
    lines.drop_after(1)
    assert tail.new_records() == []
    lines.append({"step": 2})
    lines.append({"step": 3})
    assert tail.new_records() == [{"step": 3}]


def test_steps_that_are_trained_again_are_followed_again(tmp_path):
    """What was recorded before is not told again, and steps after a checkpoint are, each time; a clock that is set back
    hides no further step."""
    lines = JsonLines(tmp_path / "m.jsonl")
    for step in (1, 2, 3):
        lines.append({"step": step, "time": 100.0 + step})
    tail = RecordReader(lines.path, Newest(LoggedSteps(3, 0), 103.0))
    assert tail.new_records() == []
    for begin in (200.0, 300.0):
        lines.drop_after(1)
        assert tail.new_records() == []
        again = [{"step": step, "time": begin + step} for step in (2, 3, 4)]
        for record in again:
            lines.append(record)
        assert tail.new_records() == again
    lines.append(late := {"step": 5, "time": 250.0})
    assert tail.new_records() == [late]


def test_a_read_that_fails_for_a_moment_loses_nothing(tmp_path, monkeypatch):
    """It gives nothing, and is told once until it works again; the next one has all, each once. The last read of a run
    waits for storage."""
    lines, said = JsonLines(tmp_path / "m.jsonl"), []
    tail = PatientRead("metrics", RecordReader(lines.path).new_records, said.append)
    lines.append({"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", _stale)
        assert tail.read() == tail.read() == []
    assert said == ["metrics cannot be read now, and are read later: [Errno 116] Stale file handle: 'm.jsonl'"]
    assert tail.read() == [{"step": 1}]
    lines.append({"step": 2})
    with lines.path.open("ab") as file:
        file.write(bytes(9) + b"\n")  # what NFS may show of a line that is on its way
    assert tail.read() == [] and len(said) == 2
    lines.path.write_bytes(lines.path.read_bytes().replace(bytes(9), b'{"step": 3}'))
    assert tail.read() == [{"step": 2}, {"step": 3}]

    attempts = iter([_stale, _stale, lambda: [4]])
    last = PatientRead("metrics", lambda: next(attempts)(), said.append)
    assert last.read(waits=(0.01, 0.01)) == [4] and len(said) == 3


def _stale(*_, **__):
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "m.jsonl")
