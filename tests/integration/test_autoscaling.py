"""Clusters that start their nodes when a run needs them: what they can have decides, not what is up."""

import json
import sys

import pytest
from autoscaled import AutoscaledCluster
from commands import Command

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.timeout(180)]

SCRIPT = """
import json, sys
import ray
from lingu_ray.config import RayConfig
from lingu_ray.errors import UserError
from lingu_ray.runtime.cluster.capacity import (
    Need, can_hold, check_most_workers, check_resources, has_room, room, uses_gpu, wait_for_nodes, workers
)

ray.init(sys.argv[1], log_to_driver=False, logging_level="WARNING")
found = {}

def refused(name, check, *arguments):
    try:
        check(*arguments)
    except UserError as error:
        found[name] = str(error)

found["before"] = [room({"CPU": 1}), uses_gpu(RayConfig()), uses_gpu(RayConfig(num_workers=5))]
group = ray.util.placement_group([{"GPU": 1}])
ray.get(group.ready())
found["held"] = [can_hold(workers(RayConfig(num_workers=count), use_gpu=True)) for count in (2, 3)]
ray.util.remove_placement_group(group)
refused("most", check_most_workers, RayConfig(num_workers={"min": 1, "max": 3}), True)
refused("many", check_resources, workers(RayConfig(num_workers=5), use_gpu=True))
refused("large", check_resources, workers(RayConfig(num_workers=2, cpus_per_worker=64), use_gpu=False))
refused("late", wait_for_nodes, Need("this", 1, {"broken": 1}), 4)
need = workers(RayConfig(num_workers=4, gpus_per_worker=0.5, cpus_per_worker=0.5), use_gpu=True)
wait_for_nodes(need, 60)
found["after"] = [room({"CPU": 1, "GPU": 1}), room({"CPU": 0.5, "GPU": 0.5}), has_room(need)]
print(json.dumps(found))
"""


def test_what_a_cluster_can_have_decides():
    """A head alone, whose autoscaler may start two nodes with a GPU: one worker gets a GPU, five get none, or are
    refused where they insist; so is a worker that no node holds. What others hold of a node counts as room, and no
    more than it. Nodes are waited for; not longer than is said, where starting one fails."""
    broken = {"broken": 1, "object_store_memory": 1}
    with (
        AutoscaledCluster({"CPU": 1, "GPU": 1}, broken, most=2) as cluster,
        Command([sys.executable, "-c", SCRIPT, cluster.address]) as driver,
    ):
        found = json.loads(driver.finish(seconds=120).splitlines()[-1])
    assert found["before"] == [0, True, False]
    assert found["held"] == [True, False]
    assert "ray.num_workers=5 needs 5 × (1 CPU, 1 GPU), and the cluster has room for" in found["many"]
    assert "raise the limits of its autoscaler" in found["many"]
    assert "ray.num_workers.max=3 needs 3 × (1 CPU, 1 GPU)" in found["most"]
    assert "no node that the cluster has, or that its autoscaler may start, holds 64 CPU" in found["large"]
    assert "this needs 1 × (1 broken), and the cluster has room for 0; " in found["late"]
    assert "some could not be started" in found["late"] and "That is so after 4 s" in found["late"]
    assert found["after"] == [2, 4, True]
