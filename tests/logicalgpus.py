"""What happens on a Ray of four GPUs that it only counts, as JSON: `TEMPORARY_FOLDER MODEL`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = "0,1,2,3"

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from tinyrun import config

from lingu_ray.config import EvaluationConfig, RayConfig
from lingu_ray.errors import UserError
from lingu_ray.evaluation.engines.engine import ScoreRequest
from lingu_ray.evaluation.replicas import Chunk, Hardware, Replicas
from lingu_ray.runtime.cluster.capacity import worker_resources
from lingu_ray.runtime.cluster.gpus import check_gpus
from lingu_ray.runtime.run import _starting

SETTINGS = EvaluationConfig(engine="transformers")


def refusal(check: Callable[..., object], *arguments: Any) -> str:
    """What the user is told."""
    try:
        check(*arguments)
    except UserError as error:
        return str(error)
    return ""


def in_a_trial(check: Callable[..., object], *arguments: Any) -> str:
    """The same in a task whose own tasks go into its placement group, without GPUs, as those of a sweep's trial."""
    remote: Any = ray.remote
    group = PlacementGroupSchedulingStrategy(placement_group([{"CPU": 0.5}]), placement_group_capture_child_tasks=True)
    return ray.get(remote(refusal).options(num_cpus=0.5, scheduling_strategy=group).remote(check, *arguments))


def visible_gpus() -> dict[str, str]:
    """CUDA_VISIBLE_DEVICES of a process without GPUs as Ray starts it, and of an engine with ray.use_gpu=false."""
    remote: Any = ray.remote
    task = remote(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
    on_cpu = Hardware.of(SETTINGS, RayConfig(use_gpu=False)).options()
    found = ray.get([task.options(num_gpus=0).remote(), task.options(**on_cpu).remote()])
    return dict(zip(("ray", "engine"), found, strict=True))


class OtherTrials:
    """An actor that holds GPUs."""


def answered(model: str) -> tuple[list[list[int]], int]:
    """Chunks that four engines of one GPU each answer, in two tasks, while others hold three; and engines that run."""
    remote: Any = ray.remote
    others = remote(OtherTrials).options(num_cpus=0, num_gpus=3).remote()
    ray.get(others.__ray_ready__.remote())
    requests = [ScoreRequest("The use of", " names")]
    tasks = []
    with Replicas("transformers", SETTINGS, Hardware(replicas=4, cpus=0.1, gpus=1, threads=1)) as replicas:
        for _ in range(2):
            replicas.serve("teacher", model)
            chunks = [Chunk(begin, lambda: requests) for begin in range(12)]
            tasks.append(sorted(chunk.begin for chunk, _ in replicas.answers(chunks)))
        return tasks, 4 - len(replicas._starting)


def main(folder: str, model: str) -> None:
    """Print all of it."""
    ray.init(num_cpus=2, num_gpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
    found: dict[str, Any] = {
        "training": in_a_trial(check_gpus, worker_resources(RayConfig(), True)),
        "evaluation": refusal(Hardware.of, SETTINGS, RayConfig()),
        "starting": _starting(config(Path(model), Path(folder), ray={"num_workers": 5})),
        "visible": visible_gpus(),
    }
    found["answered"], found["running"] = answered(model)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
