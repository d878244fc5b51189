"""metrics.jsonl: each step once, whatever crashed; the tail follows it."""

from lingu_ray.runtime.records import JsonLines, RecordReader, read_records


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
