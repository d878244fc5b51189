"""What a cluster has room for, counted by node."""

import pytest

from lingu_ray.config import RayConfig
from lingu_ray.errors import UserError
from lingu_ray.runtime.cluster import capacity
from lingu_ray.runtime.cluster.autoscaler import Plan, fits
from lingu_ray.runtime.cluster.capacity import check_resources, max_concurrent_runs, uses_gpu, wait_for_nodes, workers


@pytest.mark.parametrize(
    ("bundle", "node", "count"),
    [
        ({"CPU": 1}, {"CPU": 4}, 4),
        ({"CPU": 0.1}, {"CPU": 1}, 10),
        ({"CPU": 3}, {"CPU": 4}, 1),
        ({"CPU": 1, "GPU": 1}, {"CPU": 4, "GPU": 2}, 2),
        ({"CPU": 1, "GPU": 1}, {"CPU": 4}, 0),
        ({"CPU": 1, "GPU": 0.5}, {"CPU": 8, "GPU": 2}, 4),
        ({"CPU": 1, "GPU": 0.6}, {"CPU": 8, "GPU": 2}, 2),  # not three: no worker gets 0.4 of one and 0.2 of another
        ({"CPU": 1, "GPU": 2}, {"CPU": 8, "GPU": 3}, 1),
        ({"CPU": 1, "GPU": 0.0}, {"CPU": 2}, 2),
    ],
)
def test_workers_of_a_node(bundle: dict[str, float], node: dict[str, float], count: int):
    """A worker fits on a node with all that it needs, and its share of a GPU into one GPU."""
    assert fits(bundle, node) == count


@pytest.mark.parametrize(
    ("answers", "asked", "never"),
    [
        ([(False, 0, 0)], [4], False),  # it starts them
        ([(True, 0, 0)], [4], True),  # it may not, and nobody would give any back
        ([(True, 3, 3), (False, 3, 3)], [4, 1], False),  # with what others hold there is room
        ([(True, 1, 3), (False, 1, 1), (True, 1, 1)], [4, 1, 3], True),  # two of the three were free, not held
        ([(True, 3, 3), (True, 3, 3)], [4, 1], True),
        ([(True, 4, 4)], [4], False),  # others hold as much as is asked for
        ([(True, 2, 3), (False, 1, 1)] * 9, [4, 1, 3, 1, 3], False),  # others come and go: nothing is known
        ([None], [4], None),
    ],
)
def test_what_others_hold_is_counted(
    monkeypatch: pytest.MonkeyPatch,
    answers: list[tuple[bool, int, int] | None],
    asked: list[int],
    never: bool | None,
):
    """The autoscaler counts what is free: it is asked for the rest, and never without end. On a real one:
    integration/test_autoscaling."""
    counts, left = [], iter(answers)

    def plan(need: capacity.Need) -> Plan | None:
        counts.append(need.count)
        answer = next(left)
        return answer and Plan(answer[0], answer[1:], 0, ())

    monkeypatch.setattr(capacity, "_plan", plan)
    assert capacity._never(workers(RayConfig(num_workers=4), use_gpu=False)) is never
    assert counts == asked


@pytest.mark.slow
def test_a_cluster_without_an_autoscaler(ray_cluster: str):
    """What is up is all there is: CPUs are chosen, and what has no room is refused at once, for its number or size."""
    assert not uses_gpu(RayConfig())
    assert max_concurrent_runs(RayConfig(num_workers=2, cpus_per_worker=0.5), use_gpu=False) == 2
    wait_for_nodes(workers(RayConfig(num_workers=2), use_gpu=False), within_s=0)
    for settings, message in (
        (RayConfig(num_workers=3), r"ray.num_workers=3 needs 3 × \(1 CPU\), .* has room for 2: ask for less"),
        (RayConfig(cpus_per_worker=3), r"no single node has 3 CPU"),
        (RayConfig(use_gpu=True), r"no single node has 1 CPU, 1 GPU"),
    ):
        with pytest.raises(UserError, match=message):
            check_resources(workers(settings, uses_gpu(settings)))
