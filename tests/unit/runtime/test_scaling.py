"""What Ray Train is told of a run's workers."""

from typing import Any

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train.torch import TorchConfig

from lingu_ray.config import RayConfig
from lingu_ray.runtime.ray_train import collectives, scaling


@pytest.mark.parametrize(
    ("given", "use_gpu", "number", "resources", "backend"),
    [
        ({}, False, (1, 1), {"CPU": 1.0}, None),
        ({"num_workers": 3}, True, (3, 3), {"CPU": 1.0, "GPU": 1.0}, None),
        ({"num_workers": 2, "gpus_per_worker": 0.5}, True, (2, 2), {"CPU": 1.0, "GPU": 0.5}, "gloo"),
        ({"gpus_per_worker": 0.5}, True, (1, 1), {"CPU": 1.0, "GPU": 0.5}, None),
        ({"num_workers": 2, "gpus_per_worker": 2, "cpus_per_worker": 4}, True, (2, 2), {"CPU": 4.0, "GPU": 2.0}, None),
        ({"num_workers": {"min": 1, "max": 4, "check_every_s": 9}}, False, (1, 4), {"CPU": 1.0}, None),
    ],
)
def test_workers(given: dict[str, Any], use_gpu: bool, number: tuple[int, int], resources: Any, backend: str | None):
    """Number, resources and collectives follow the settings; a range makes the number elastic."""
    settings = RayConfig(placement="SPREAD", **given)
    found = scaling(settings, use_gpu)
    assert (found.min_workers, found.max_workers) == number
    assert found.elasticity_enabled == (number[0] < number[1])
    assert not found.elasticity_enabled or found.elastic_resize_monitor_interval_s == 9
    assert found.resources_per_worker == resources and found.num_gpus_per_worker == resources.get("GPU", 0)
    assert found.placement_strategy == "SPREAD" and collectives(settings).backend == backend


class Dead:
    """Workers of which asking anything raises an error, as the controller's group of dead ones does."""

    def __init__(self, error: Exception):
        self.error = error

    def __len__(self) -> int:
        return 1

    def execute_async(self, *_: object, **__: object) -> None:
        raise self.error


def test_what_remains_of_a_worker_that_ray_ended_does_not_end_the_run():
    """Ray Train's controller takes groups down before it starts workers again, and fails by any error but a dead
    actor's, which it takes for a restart by itself."""
    groups = collectives(RayConfig())
    backend = groups.backend_cls()
    assert isinstance(backend, TorchConfig().backend_cls)
    backend.on_shutdown(Dead(OutOfMemoryError("1 worker(s) were killed due to the node running low on memory")), groups)
    with pytest.raises(ActorDiedError):
        backend.on_shutdown(Dead(ActorDiedError()), groups)
