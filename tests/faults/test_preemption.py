"""Nodes that are announced to go: at most a step is lost, none is a failure, and the result is equal to the bit."""

import signal
import threading

import commands
import pytest
import torch
from nodes import Nodes
from safetensors.torch import load_file
from tinyrun import write_settings

from lingu_ray.runtime.run_folder.records import read_records

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1200)]

STEPS = 160
TRAIN = {"steps": STEPS, "rows_per_step": 12, "validate_every": 40, "sample_every": 0}
TRAIN |= {"checkpoint_every": 20, "checkpoint": "sharded"}


@pytest.fixture(scope="module")
def cluster(warm_workers):
    """A head, and nodes with room for a worker each, three of them to spare; all started as users start them."""
    with Nodes(cold=True) as nodes:
        for _ in range(5):
            nodes.add()
        yield nodes


def start(cluster, data, output, name, **ray):
    """Start a run of two workers."""
    ray = {"num_workers": 2, "cpus_per_worker": 1, **ray}
    path = write_settings(output / f"{name}.yaml", data, output, name=name, train=TRAIN, ray=ray)
    env = {"RAY_ADDRESS": cluster.address, "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1"}
    return commands.start_warm("lingu_ray.train", path, env=env)


class Watch(threading.Thread):
    """Follows a run's metrics: `step` is the newest, `lost` how many steps each restart had to do again."""

    def __init__(self, folder):
        super().__init__(daemon=True)
        self.path, self.step, self.lost, self.over = folder / "metrics.jsonl", 0, [], threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()

    def run(self):
        while not self.over.wait(0.01):
            steps = [record["step"] for record in read_records(self.path)]
            if steps and steps[-1] < self.step:
                self.lost.append(self.step - steps[-1])
            self.step = steps[-1] if steps else self.step


def results(output, name):
    """Exported weights, and all that is measured of each step and validation."""
    measured = [
        {
            key: value
            for key, value in record.items()
            if key in ("step", "loss", "ce", "kd", "grad_norm", "validation_ce")
        }
        for record in read_records(output / name / "metrics.jsonl")
    ]
    return load_file(output / name / "export" / "model.safetensors"), measured


def test_nodes_are_taken_away(cluster, data, tmp_path):
    """SIGTERM to the node of the second worker, then to that of the first, then to one that is gone before its step can
    end; each time another has room. With `ray.max_failures=0` the run ends as one that nothing happened to: weights,
    losses, norms and validations have the same bits. Not more than one step is done again where the step could end."""
    with start(cluster, data, tmp_path, "undisturbed") as command:
        command.finish()
    command = start(cluster, data, tmp_path, "preempted", max_failures=0, max_preemptions=3)
    with command, Watch(tmp_path / "preempted") as watch:
        # The second strike may come while the workers of the second group start: they end for it, too.
        groups = 0
        for rank, step_ends in ((1, True), (0, True), (0, False)):
            groups, begin = groups + 1, watch.step
            command.wait_for(lambda: len(cluster.worker_groups()) == groups and watch.step > begin + 5)  # noqa: B023
            leaving = cluster.worker_groups()[-1][rank]
            if not step_ends:
                assert all(lost <= 1 for lost in watch.lost), watch.lost
                cluster.worker("TeacherActor", leaving).suspend()
            leaving.process.send_signal(signal.SIGTERM)
        command.finish()
    assert len(cluster.worker_groups()) == 4
    (ours, measured), (theirs, expected) = (results(tmp_path, name) for name in ("preempted", "undisturbed"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert measured == expected and [r["step"] for r in measured if "loss" in r] == list(range(1, STEPS + 1))
