"""Settings of the Ray cluster."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from lingu_ray.config.base import Section


class RayConfig(Section):
    """The Ray cluster, and what a run gets of it."""

    address: str | None = Field(
        None, description="cluster to join ('auto', ray://…); null: the cluster of this Ray job, else a local one"
    )
    num_workers: PositiveInt = Field(1, description="data-parallel workers")
    use_gpu: bool | None = Field(None, description="one GPU per worker; null: if the cluster has GPUs")
    cpus_per_worker: float = Field(1.0, gt=0, description="CPUs reserved for a worker and its teacher")
    threads_per_worker: int | None = Field(
        None, ge=1, description="torch threads of worker and teacher; null: the node's cores, divided"
    )
    max_failures: int = Field(
        2, ge=0, description="times that workers which died are started again, from the newest checkpoint"
    )
    max_preemptions: int | None = Field(
        None, ge=0, description="times that workers are started again because their node was taken away; null: no limit"
    )
