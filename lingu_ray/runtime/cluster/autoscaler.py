"""Ray's autoscaler (version 2): what it makes of a request for nodes that are not up yet.

What it may start is known to it alone: nothing of its node types and limits reaches the cluster. So it is asked, by a
placement group as Ray Train makes one, and says in its next round whether it can ever be met.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import ray
from ray import _raylet
from ray.core.generated import autoscaler_pb2
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.placement_group import placement_group, remove_placement_group

Bundle = Mapping[str, float]
"""Resources of one process, by Ray's names; all of them on one node."""

_compiled: Any = _raylet  # and the other generated: neither is typed
_generated: Any = autoscaler_pb2

_ROUNDS_WITHIN_S = 30.0
"""It makes a round every 5 seconds; one that has not answered by then is dead."""
_MET_WITHIN_S = 1.0
"""A request that does not wait by then was met."""
_ROUNDING = 1e-6


def has_autoscaler() -> bool:
    """Whether the cluster was started for the autoscaler of version 2, which says what it can do."""
    key, namespace = _compiled.GCS_AUTOSCALER_V2_ENABLED_KEY, _compiled.GCS_AUTOSCALER_STATE_NAMESPACE
    return _internal_kv_get(key, namespace=namespace) == b"1"


@dataclass(frozen=True)
class Plan:
    """What the autoscaler makes of a request. `infeasible`: what is free and what it may start cannot hold it.

    `held`: how many such bundles others hold on nodes that are up, and may give back; the fewest and the most while it
    decided, for what nodes have free is known late. `starting`: nodes that are on their way, for whomever. `failed`:
    why others could not be started.
    """

    infeasible: bool
    held: tuple[int, int]
    starting: int
    failed: Sequence[str]


class NodeRequest:
    """A request for `count` bundles, which the autoscaler starts nodes for; taken back on leaving the `with` block."""

    def __init__(self, bundle: Bundle, count: int, strategy: str):
        self.bundle = dict(bundle)
        self.group = placement_group([self.bundle] * count, strategy)

    def met(self, within_s: int) -> bool:
        """Wait until there is room for all of it; False where there is none yet."""
        return self.group.wait(within_s)

    def plan(self) -> Plan | None:
        """The autoscaler's answer, in its next round; None where it does not answer."""
        ask: Any = ray.remote(num_cpus=0)(_plan)  # a task: a driver outside the cluster does not reach its GCS
        return ray.get(ask.remote(self.group.id.hex(), self.bundle))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        remove_placement_group(self.group)
        wait: Any = ray.remote(num_cpus=0)(_wait_until_given_back)  # or the next request finds less than there is
        ray.get(wait.remote(self.group.id.hex()))


def _status() -> Any:
    gcs = _compiled.GcsClient(ray.get_runtime_context().gcs_address)
    return _generated.GetClusterStatusReply.FromString(gcs.get_cluster_status())


def _wait_until_given_back(group: str) -> None:
    deadline = time.monotonic() + _ROUNDS_WITHIN_S
    while time.monotonic() < deadline and any(_bundles(group, node) for node in _up(_status().cluster_resource_state)):
        time.sleep(0.1)


def _plan(group: str, bundle: Bundle) -> Plan | None:
    asked, begin, held = None, time.monotonic(), []
    while time.monotonic() < begin + _ROUNDS_WITHIN_S:
        status = _status()
        state, planned = status.cluster_resource_state, status.autoscaling_state
        waiting = any(_is(group, request) for request in state.pending_gang_resource_requests)
        if asked is None and (waiting or time.monotonic() > begin + _MET_WITHIN_S):
            asked = state.cluster_resource_state_version
        held.append(_held(state, bundle, besides=group))
        if asked is not None and planned.last_seen_cluster_resource_state_version >= asked:
            infeasible = any(_is(group, request) for request in planned.infeasible_gang_resource_requests)
            starting = sum(one.count for one in planned.pending_instance_requests) + len(planned.pending_instances)
            failed = sorted({one.reason for one in planned.failed_instance_requests})
            return Plan(infeasible, (min(held), max(held)), starting, failed)
        time.sleep(0.2)
    return None


def _is(group: str, request: Any) -> bool:
    """Whether a request is that placement group: its details are `ID:STRATEGY|STATE`."""
    return request.details.startswith(f"{group}:")


def _held(state: Any, bundle: Bundle, besides: str) -> int:
    """How many bundles more the nodes that are up could hold once others than `besides` have given back what they
    use."""
    return sum(
        fits(bundle, node.total_resources) - fits(bundle, node.available_resources) - _bundles(besides, node)
        for node in _up(state)
    )


def _up(state: Any) -> list[Any]:
    return [node for node in state.node_states if node.status != _generated.NodeStatus.DEAD]


def _bundles(group: str, node: Any) -> int:
    """How many bundles of a placement group are on a node: each is a thousand of a resource."""
    return round(node.total_resources.get(f"bundle_group_{group}", 0) / 1000)


def fits(bundle: Bundle, resources: Mapping[str, float]) -> int:
    """How many such bundles the resources hold. A share of a GPU is one of a single GPU."""
    return min(_times(name, amount, resources.get(name, 0)) for name, amount in bundle.items() if amount)


def _times(name: str, amount: float, of: float) -> int:
    if name == "GPU" and amount < 1:
        return int(of) * int(1 / amount + _ROUNDING)
    return int(of / amount + _ROUNDING)
