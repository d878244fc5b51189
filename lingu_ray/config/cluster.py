"""Settings of the Ray cluster."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, ValidationError

from lingu_ray.config.base import Section, rule


class WorkerRange(Section):
    """A number of workers that may change while a run trains."""

    min: PositiveInt = Field(description="fewest workers to train with; with room for fewer, the run waits")
    max: PositiveInt = Field(description="most workers")
    check_every_s: float = Field(
        60.0, ge=0, description="seconds between looks at the cluster's room; each change starts the workers anew"
    )

    def __str__(self) -> str:
        return f"{self.min} to {self.max}"


def _number_or_range(given: Any) -> Any:
    """Check either form here: for a union, pydantic would report an error for each form."""
    if isinstance(given, int) and not isinstance(given, bool) and given > 0:
        return given
    try:
        found = WorkerRange.model_validate(given)
    except ValidationError:
        raise ValueError("give a number above 0, or {min: 1, max: 4}") from None
    if found.min > found.max:
        raise ValueError(f"min {found.min} is above max {found.max}")
    return found


class RayConfig(Section):
    """The Ray cluster, and what a run gets of it."""

    address: str | None = Field(
        None, description="cluster to join ('auto', ray://…); null: the cluster of this Ray job, else a local one"
    )
    num_workers: Annotated[PositiveInt | WorkerRange, BeforeValidator(_number_or_range)] = Field(
        1,
        description="data-parallel workers; {min: 1, max: 4}: as many as the cluster has room for, more or fewer as "
        "nodes come and go",
    )
    use_gpu: bool | None = Field(
        None, description="GPUs for the workers; null: if the cluster, or its autoscaler, can give them to all"
    )
    cpus_per_worker: float = Field(1.0, gt=0, description="CPUs reserved for a worker and its teacher")
    gpus_per_worker: float = Field(
        1.0,
        gt=0,
        le=2,
        description="GPUs of a worker: below 1 it shares one with other workers; with 2, its teacher has the second",
    )
    placement: Literal["PACK", "SPREAD"] = Field(
        "PACK", description="workers on as few nodes as possible (PACK), or on as many (SPREAD)"
    )
    threads_per_worker: int | None = Field(
        None,
        ge=1,
        description="torch threads of worker and teacher; null: the physical cores that the node may use, divided",
    )
    wait_for_nodes_s: float = Field(
        1800.0, ge=0, description="seconds to wait for nodes that the cluster's autoscaler starts"
    )
    max_failures: int = Field(
        2, ge=0, description="times that workers which died are started again, from the newest checkpoint"
    )
    max_preemptions: int | None = Field(
        None, ge=0, description="times that workers are started again because their node was taken away; null: no limit"
    )

    @property
    def min_workers(self) -> int:
        """Fewest workers to train with."""
        return self.num_workers.min if isinstance(self.num_workers, WorkerRange) else self.num_workers

    @property
    def max_workers(self) -> int:
        """Most workers to train with."""
        return self.num_workers.max if isinstance(self.num_workers, WorkerRange) else self.num_workers

    @property
    def check_every_s(self) -> float:
        """Seconds between looks at the cluster's room, where the number of workers may change."""
        return self.num_workers.check_every_s if isinstance(self.num_workers, WorkerRange) else 0.0

    @property
    def shares_gpus(self) -> bool:
        """Whether several workers may have one GPU."""
        return self.use_gpu is not False and self.gpus_per_worker < 1 < self.max_workers

    @rule
    def _gpus_that_ray_can_give(self) -> RayConfig:
        if self.gpus_per_worker > 1 and self.gpus_per_worker != 2:
            raise ValueError(f"ray.gpus_per_worker={self.gpus_per_worker:g}: give a share of one GPU, 1 or 2")
        return self
