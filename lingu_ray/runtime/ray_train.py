"""What Ray Train is started with: a run's workers, how they talk, and how often they are started again."""

from __future__ import annotations

import time
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from lingu_ray.config import Config, RayConfig
from lingu_ray.runtime.cluster.capacity import uses_gpu, worker_resources
from lingu_ray.runtime.cluster.elastic import SaveBeforeResize
from lingu_ray.runtime.cluster.preemption import GIVE_UP_BEFORE_S
from lingu_ray.runtime.cluster.torch_groups import Groups
from lingu_ray.runtime.failures import OnFailure
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.training.worker import Job, train_worker


def torch_trainer(config: Config, folder: RunFolder, job: Job) -> TorchTrainer:
    """Ray Train's trainer of a run, to be started by `fit`."""
    # Any: `ray.train` types its classes as either generation of its API
    name = time.strftime("%Y%m%d-%H%M%S")
    callbacks: Any = [OnFailure(folder.ray), SaveBeforeResize()]
    storage: Any = RunConfig(
        name=name, storage_path=str(folder.ray), failure_config=failures(config.ray), callbacks=callbacks
    )
    return TorchTrainer(
        train_worker,
        train_loop_config=vars(job),
        torch_config=collectives(config.ray),
        scaling_config=scaling(config.ray, uses_gpu(config.ray)),
        run_config=storage,
    )


def scaling(settings: RayConfig, use_gpu: bool) -> Any:
    """What Ray Train is told of the workers: their number, and what each gets where."""
    fewest, most = settings.min_workers, settings.max_workers
    config: Any = ScalingConfig
    return config(
        num_workers=most if fewest == most else (fewest, most),
        use_gpu=use_gpu,
        resources_per_worker=worker_resources(settings, use_gpu),
        placement_strategy=settings.placement,
        elastic_resize_monitor_interval_s=settings.check_every_s,
    )


def collectives(settings: RayConfig) -> Groups:
    """How the workers talk: NCCL wants a GPU for each, so those that share one use gloo."""
    return Groups(backend="gloo" if settings.shares_gpus else None)


def failures(settings: RayConfig) -> Any:
    """How often Ray Train starts workers again: after failures, and, counted apart, when nodes were taken away."""
    preemptions = -1 if settings.max_preemptions is None else settings.max_preemptions
    config: Any = FailureConfig  # typed as either generation of the API, too
    return config(
        max_failures=settings.max_failures, max_preemption_failures=preemptions, preemption_grace_s=GIVE_UP_BEFORE_S
    )
