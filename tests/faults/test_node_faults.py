"""What a run on a cluster survives: nodes that are taken away, or die. It ends with the same weights to the bit."""

import threading
import time

import commands
import pytest
import torch
from nodes import Nodes, preempt
from safetensors.torch import load_file
from tinyrun import write_settings

from lingu_ray.runtime.records import read_records

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(900)]

STEPS = 160
TRAIN = {"steps": STEPS, "rows_per_step": 12, "checkpoint_every": 1000, "validate_every": 0, "sample_every": 0}
ENV = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.3"}


@pytest.fixture(scope="module")
def cluster(warm_workers):
    """A head, and two nodes with room for a worker each."""
    with Nodes() as nodes:
        nodes.workers = [nodes.add(), nodes.add()]
        yield nodes


def start(cluster, data, output, name, **ray):
    """Start a run of two workers on the cluster."""
    ray = {"num_workers": 2, "cpus_per_worker": 1, "address": cluster.address, **ray}
    path = write_settings(output / f"{name}.yaml", data, output, name=name, train=TRAIN, ray=ray)
    return commands.start_warm("lingu_ray.train", path, env=ENV)


@pytest.fixture(scope="module")
def output(cluster, data, tmp_path_factory):
    """A folder with the undisturbed run in it."""
    folder = tmp_path_factory.mktemp("runs")
    begin = time.monotonic()
    with start(cluster, data, folder, "undisturbed") as command:
        command.finish()
    print("undisturbed", time.monotonic() - begin)
    return folder


class Watch(threading.Thread):
    """Follows a run's metrics: `step` is the newest, `lost` how many steps each restart had to do again."""

    def __init__(self, folder):
        super().__init__(daemon=True)
        self.path, self.step, self.lost = folder / "metrics.jsonl", 0, []
        self.start()

    def run(self):
        while True:
            records = read_records(self.path)
            step = records[-1]["step"] if records else 0
            if step < self.step:
                self.lost.append(self.step - step)
            self.step = step
            time.sleep(0.01)


def assert_same_run(output, name):
    """Same weights to the bit as the undisturbed run, and every step stands once in the metrics."""
    ours, theirs = (load_file(output / run / "export" / "model.safetensors") for run in (name, "undisturbed"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    ours, theirs = (
        [(r["step"], r["loss"]) for r in read_records(output / run / "metrics.jsonl")] for run in (name, "undisturbed")
    )
    assert ours == theirs and [step for step, _ in ours] == list(range(1, STEPS + 1))


def test_nodes_are_taken_away(cluster, data, output):
    """SIGTERM to each node in turn, that of the first worker included, while another joins: at most one step is done
    again each time, and none of it counts as a failure."""
    with start(cluster, data, output, "preempted", max_failures=0, max_preemptions=2) as command:
        watch = Watch(output / "preempted")
        for step in (5, 60):
            command.wait_for(lambda step=step: watch.step >= step)
            print(time.strftime("%X"), "preempt at", watch.step)
            before = len(watch.lost)
            leaving, cluster.workers = cluster.workers[0], [*cluster.workers[1:], cluster.add()]
            preempt(leaving)
            command.wait_for(lambda before=before: len(watch.lost) > before)
            print(time.strftime("%X"), "resumed at", watch.step, watch.lost)
        print(command.finish())
    assert all(lost <= 1 for lost in watch.lost), watch.lost
    assert_same_run(output, "preempted")
