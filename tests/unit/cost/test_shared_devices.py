"""Workers that share a device: how many they are, what they take together, and how much slower each one is."""

from pathlib import Path
from typing import Any

import pytest
import tinyrun

from lingu_ray.config import RayConfig
from lingu_ray.cost.devices import GPUS, Device
from lingu_ray.cost.estimate import Estimate, estimate_of
from lingu_ray.cost.workload import RowConfig, workers_per_device

ROW = RowConfig(text_tokens=60, answer_tokens=20)
CPU = Device("cpu", 24e9, bf16=1e11, fp32=1e11, bandwidth=1e10)


@pytest.fixture
def on(pair: Path, tmp_path: Path, models_of: Any) -> Any:
    """Estimates a run on a device."""

    def on(device: Device, **settings: Any) -> Estimate:
        config = tinyrun.config(pair, tmp_path, **settings)
        return estimate_of(config, ROW, device, models_of(config))

    return on


@pytest.mark.parametrize(
    ("gpus", "workers", "of_one"), [(1, 4, 1), (2, 4, 1), (0.6, 4, 1), (0.5, 1, 1), (0.5, 4, 2), (0.3333, 9, 3)]
)
def test_as_many_share_a_gpu_as_have_room_on_it(gpus: float, workers: int, of_one: int) -> None:
    """Ray rounds down, and there are no more than there are."""
    assert workers_per_device(RayConfig(gpus_per_worker=gpus), True, workers) == of_one
    assert workers_per_device(RayConfig(gpus_per_worker=gpus), False, workers) == workers


def test_memory_of_a_shared_gpu(on: Any) -> None:
    """Worker and teacher of each; a teacher of the node once; as many as most workers are."""

    def needed(gpus: float, workers: Any, placement: str = "actor") -> float:
        ray = {"gpus_per_worker": gpus, "num_workers": workers}
        return on(GPUS["h100"], ray=ray, teacher={"placement": placement}, train={"rows_per_step": 64}).needed

    assert needed(0.6, 1) == needed(0.5, 1) == needed(1, 1)
    assert needed(0.5, 2) == 2 * needed(1, 2) and needed(0.5, {"min": 2, "max": 2}) == needed(0.5, 2)
    assert needed(0.5, {"min": 1, "max": 2}) >= 2 * needed(1, 1)
    worker, teacher, _ = on(GPUS["h100"], teacher={"placement": "node"}, train={"rows_per_step": 32}).training
    assert needed(0.5, 2, "node") == 2 * worker.bytes + teacher.bytes


def test_engines_side_by_side(on: Any) -> None:
    """A machine holds those of all models that are measured at once, each GPU one."""

    def needed(device: Device, **settings: int) -> float:
        tasks = {"tasks": ["arc_easy"], "tokens_per_batch": 10**6}
        return on(device, evaluation=tasks | settings).needed

    assert needed(CPU, replicas=2, models_at_once=3) == 6 * needed(CPU)
    assert needed(GPUS["h100"], replicas=2) == needed(GPUS["h100"])


def test_several_workers_are_no_faster_on_one_device(on: Any) -> None:
    """The same rows take a CPU's products and memory as long whoever computes them, and so with shares of a GPU; of
    GPUs of their own two take half. What the host launches, each worker launches at once."""

    def seconds(device: Device, workers: int, **ray: float) -> dict[str, float]:
        return on(device, train={"rows_per_step": 64}, ray=ray | {"num_workers": workers}).time.seconds

    alone, four = seconds(CPU, 1), seconds(CPU, 4)
    assert [four[name] for name in ("student", "teacher", "KV")] == pytest.approx(
        [alone[name] for name in ("student", "teacher", "KV")]
    )
    assert four["optimizer"] == pytest.approx(4 * alone["optimizer"])  # each updates all of its copy
    own, shared = seconds(GPUS["h100"], 2), seconds(GPUS["h100"], 2, gpus_per_worker=0.5)
    assert shared["student"] == pytest.approx(2 * own["student"]) and shared["launches"] == own["launches"]


def test_a_sharded_optimizer_takes_its_share(on: Any) -> None:
    """Under FSDP2 a worker updates its part of the decoder's layers, and of the rest all."""
    ray = {"num_workers": 3}
    whole, sharded = (on(GPUS["h100"], train={"parallelism": name}, ray=ray) for name in ("ddp", "fsdp2"))
    rest = 1 - whole.models.trained_layer_parameters / sum(whole.models.trained.values())
    share = sharded.time.seconds["optimizer"] / whole.time.seconds["optimizer"]
    assert share == pytest.approx(rest + (1 - rest) / 3)
