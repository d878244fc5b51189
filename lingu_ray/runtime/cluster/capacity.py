"""What a cluster has room for, and what it can have where an autoscaler starts nodes; waiting for those.

Settings and what a cluster can have decide whether a run starts and on what, never what happens to be up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import ray

from lingu_ray.config import RayConfig
from lingu_ray.errors import UserError
from lingu_ray.runtime.cluster.autoscaler import Bundle, NodeRequest, Plan, fits, has_autoscaler

_SAY_EVERY_S = 30
_ROUNDS = 5
"""Questions to the autoscaler, each of some seconds, before what others hold is said to change too often to count."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Need:
    """`count` processes with the resources of a `bundle` each, each on one node. `setting` asks for that many."""

    setting: str
    count: int
    bundle: Bundle = field(hash=False)
    strategy: str = "PACK"

    def __str__(self) -> str:
        return f"{self.count} × ({shown(self.bundle)})"


def workers(settings: RayConfig, use_gpu: bool, runs: int = 1) -> Need:
    """What the fewest workers need that so many runs train with."""
    count = settings.min_workers * runs
    return Need(f"ray.num_workers={count}", count, worker_resources(settings, use_gpu), settings.placement)


def check_most_workers(settings: RayConfig, use_gpu: bool) -> None:
    """Raise UserError where an autoscaler may never start the most workers: Ray Train asks it for all or for none."""
    most = settings.max_workers
    if settings.min_workers < most and has_autoscaler():
        resources = worker_resources(settings, use_gpu)
        check_resources(Need(f"ray.num_workers.max={most}", most, resources, settings.placement))


def worker_resources(settings: RayConfig, use_gpu: bool) -> dict[str, float]:
    """Resources of a worker and its teacher."""
    gpus = {"GPU": settings.gpus_per_worker} if use_gpu else {}
    return {"CPU": settings.cpus_per_worker, **gpus}


def uses_gpu(settings: RayConfig) -> bool:
    """Whether the workers get GPUs: as set, else where the cluster can have them for the fewest workers of a run."""
    if settings.use_gpu is not None:
        return settings.use_gpu
    return can_hold(workers(settings, use_gpu=True))


def can_hold(need: Need) -> bool:
    """Whether the cluster has room for it, or can have."""
    return has_room(need) or _can_start(need, ray.get_runtime_context().gcs_address)


@cache  # the answer takes a round of the autoscaler
def _can_start(need: Need, cluster: str) -> bool:
    return _refusal(need) is None


def has_room(need: Need) -> bool:
    """Whether the nodes that are up hold it, whatever else runs on them."""
    return room(need.bundle) >= need.count


def room(bundle: Bundle) -> int:
    """How many processes with these resources the nodes that are up hold."""
    return sum(fits(bundle, node) for node in _nodes())


def max_concurrent_runs(settings: RayConfig, use_gpu: bool) -> int:
    """How many runs' workers the nodes that are up hold at once."""
    return room(worker_resources(settings, use_gpu)) // settings.min_workers


def check_resources(need: Need) -> None:
    """Raise UserError where the cluster can never hold it: neither on nodes that are up nor on ones it may start."""
    if not has_room(need) and (refusal := _refusal(need)):
        raise UserError(refusal)


def wait_for_nodes(need: Need, within_s: float) -> None:
    """Wait until the cluster has room for it; says every half minute what is missing.

    Raises:
        UserError: it can never have, or has none after `within_s` seconds.
    """
    if has_room(need):
        return
    check_resources(need)
    with NodeRequest(need.bundle, need.count, need.strategy) as request:
        deadline = time.monotonic() + within_s
        while True:
            left = max(0.0, deadline - time.monotonic())
            log.info("waiting for nodes, for up to %d s more (ray.wait_for_nodes_s)", left)
            if request.met(int(min(left, _SAY_EVERY_S))) or has_room(need):
                return
            news = f"{_missing(need)}; {_news(request.plan())}"
            if time.monotonic() >= deadline:
                raise UserError(
                    f"{news}. That is so after {within_s:g} s (ray.wait_for_nodes_s): see `ray status` on the head "
                    "node; give it longer, or ask for less"
                )
            log.info("%s", news)


def _missing(need: Need) -> str:
    return f"{need.setting} needs {need}, and the cluster has room for {room(need.bundle)}"


def _refusal(need: Need) -> str | None:
    """Why the cluster can never hold more than it has; None where its autoscaler can start what is missing."""
    cannot, alone = _missing(need), replace(need, count=1)
    if not has_autoscaler():
        return f"{cannot}: {_too_small(alone)}ask for less, or add nodes: it has no autoscaler (version 2) that would"
    log.info("%s: asking its autoscaler", cannot)
    never = _never(need)
    if never is None:
        return f"{cannot}: ask for less, or add nodes: its autoscaler does not answer"
    if not never:
        return None
    if not has_room(alone) and _never(alone):
        return (
            f"no node that the cluster has, or that its autoscaler may start, holds {shown(need.bundle)}: "
            "lower ray.cpus_per_worker or ray.gpus_per_worker, or give the autoscaler a larger type of node"
        )
    return f"{cannot}: ask for less, or raise the limits of its autoscaler, which may start no more"


def _never(need: Need) -> bool | None:
    """Whether the nodes that the autoscaler has and may start cannot hold it, whatever else runs on them; None where it
    does not answer. It counts only what is free, so it is asked for what others could not make room for. Where others
    come and go while it is asked, nothing is ruled out."""
    held = 0
    for _ in range(_ROUNDS):
        if held >= need.count:
            break
        plan = _plan(replace(need, count=need.count - held))
        if plan is None:
            return None
        least, most = plan.held
        if plan.infeasible and most <= held:
            return True
        if not plan.infeasible and least >= held:
            return False
        held = most if plan.infeasible else least
    return False


def _plan(need: Need) -> Plan | None:
    with NodeRequest(need.bundle, need.count, need.strategy) as request:
        return request.plan()


def _too_small(one: Need) -> str:
    """What no single node has of a process's resources."""
    if has_room(one):
        return ""
    return f"no single node has {shown(one.bundle)} (ray.cpus_per_worker, ray.gpus_per_worker); "


def _news(plan: Plan | None) -> str:
    if plan is None:
        return "its autoscaler does not answer"
    failed = f"; some could not be started: {'; '.join(plan.failed)}" if plan.failed else ""
    return f"{plan.starting} node{'s are' if plan.starting != 1 else ' is'} on the way{failed}"


def _nodes() -> Sequence[Bundle]:
    """Resources of the nodes that are up, used or not."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def shown(bundle: Bundle) -> str:
    """Resources as messages have them: `1 CPU, 1 GPU`."""
    return ", ".join(f"{amount:g} {name}" for name, amount in bundle.items() if amount)
