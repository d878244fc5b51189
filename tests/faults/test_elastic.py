"""A run whose number of workers changes as nodes come and go trains on the same rows, step by step."""

import re
import time
from contextlib import suppress
from pathlib import Path

import commands
import psutil
import pytest
import rows_read
from autoscaled import AutoscaledCluster
from nodes import Nodes
from processes import title_of
from safetensors.torch import load_file
from tinyrun import write_settings

from lingu_ray.runtime.run_folder.records import read_records

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(600)]

STEPS, ROWS = 120, 12
TICK_S = 20
"""Ray Train knows of a new node after that."""
TRAIN = {"steps": STEPS, "rows_per_step": ROWS, "checkpoint_every": 10, "validate_every": 100, "sample_every": 0}


def records(folder: Path):
    """The records of the run's steps."""
    return [r for r in read_records(folder / "metrics.jsonl") if "loss" in r]


def test_nodes_come_and_go(warm_workers, data, tmp_path):
    """One node; another joins; one is killed. Steps are trained by 1, 2 and 1 workers: none is left out or recorded
    twice, each reads the rows that it reads with one worker, and the losses are those of one worker up to rounding.
    Before a second worker joins, the steps are saved; so none of them is trained twice."""
    elastic = {"cpus_per_worker": 1, "num_workers": {"min": 1, "max": 2, "check_every_s": 1}, "max_failures": 3}
    with Nodes() as cluster:
        first = cluster.add()
        env, folder = {"RAY_ADDRESS": cluster.address}, tmp_path / "elastic"
        alone = write_settings(tmp_path / "alone.yaml", data, tmp_path, name="alone", train=TRAIN)
        commands.run("lingu_ray.train", alone, env=env, warm=True)
        path = write_settings(tmp_path / "e.yaml", data, tmp_path, name="elastic", train=TRAIN, ray=elastic)
        rows = tmp_path / "rows"
        recording = {**env, **rows_read.environment(rows)}
        with commands.start_warm("lingu_ray.train", path, cwd=Path(__file__).parents[1], env=recording) as command:
            command.wait_for(lambda: len(records(folder)) >= 20)
            teacher = process(first, "TeacherActor")
            teacher.suspend()  # the step lasts until the second node is there
            second = cluster.add()
            time.sleep(TICK_S + 5)
            teacher.resume()
            command.wait_for(lambda: records(folder)[-1]["workers"] == 2)
            joined = next(r["step"] for r in records(folder) if r["workers"] == 2)
            command.wait_for(lambda: len(records(folder)) >= joined + 20)
            for node in (first, second):  # its own teacher is on each worker's node
                assert process(node, "RayTrainWorker") and process(node, "TeacherActor")
            second.kill()
            printed = command.finish()
    plain, changing = records(tmp_path / "alone"), records(folder)
    assert [r["step"] for r in changing] == list(range(1, STEPS + 1))
    numbers = [r["workers"] for r in changing]
    assert [n for i, n in enumerate(numbers) if i == 0 or numbers[i - 1] != n] == [1, 2, 1]
    assert re.search(r"workers from step \d+ on: 2, 1 before", printed)
    read = rows_read.rows_by_step(rows)
    assert read.keys() == set(range(1, STEPS + 1))
    length = max(max(step) for step in read.values()) + 1
    assert all(read[s] == sorted(p % length for p in range((s - 1) * ROWS, s * ROWS)) for s in read)
    assert [r["tokens"] for r in changing] == [r["tokens"] for r in plain]
    assert [r["loss"] for r in changing] == pytest.approx([r["loss"] for r in plain], rel=0.02)
    theirs, ours = (load_file(tmp_path / name / "export" / "model.safetensors") for name in ("alone", "elastic"))
    assert all((ours[name] - theirs[name]).abs().max() < 0.02 for name in theirs)
    assert trained_twice(rows, joined) == 0


def process(node: commands.Command, title: str) -> psutil.Process:
    """The one living process of a node, of those that Ray starts there, that has the title."""
    found = []
    for pid in node.began:
        with suppress(psutil.NoSuchProcess):
            one = psutil.Process(pid)
            found += [one] if title in title_of(one) else []
    assert len(found) == 1, found
    return found[0]


def trained_twice(rows: Path, before: int) -> int:
    """How many steps before that one were read more than once."""
    lines = [line for line in rows.read_text(encoding="utf-8").splitlines() if '"rank": 0' in line]
    steps = [int(re.findall(r'"step": (\d+)', line)[0]) + 1 for line in lines]
    return sum(steps.count(step) > 1 for step in range(1, before))


def test_a_run_starts_its_nodes(data, tmp_path):
    """No worker node is up: the run says what it waits for, its node is started, and it trains there."""
    short = {"steps": 4, "rows_per_step": 4, "validate_every": 0, "sample_every": 0}
    with AutoscaledCluster({"CPU": 1}, most=1) as cluster:
        path = write_settings(tmp_path / "run.yaml", data, tmp_path, name="run", train=short, ray={"num_workers": 2})
        printed = commands.run("lingu_ray.train", path, env={"RAY_ADDRESS": cluster.address})
    assert "ray.num_workers=2 needs 2 × (0.5 CPU), and the cluster has room for 0" in printed
    assert "starting 2 workers and their teachers, on CPU" in printed
    assert [r["step"] for r in records(tmp_path / "run")] == [1, 2, 3, 4]
