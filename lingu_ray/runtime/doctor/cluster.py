"""The checks of a machine or a cluster, one after another: what fails in one is its finding, and the others go on."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lingu_ray.atomic import why_unwritable
from lingu_ray.config import Config
from lingu_ray.config.flat import without_credentials
from lingu_ray.errors import UserError
from lingu_ray.runtime.cluster.autoscaler import has_autoscaler
from lingu_ray.runtime.cluster.capacity import check_resources, has_room, uses_gpu, workers
from lingu_ray.runtime.cluster.connect import connect
from lingu_ray.runtime.doctor.checks import check_nodes
from lingu_ray.runtime.doctor.finding import Finding
from lingu_ray.runtime.doctor.node import NodeFacts, Probe, put_marker, remove_marker
from lingu_ray.runtime.doctor.paths import needed_paths
from lingu_ray.runtime.tracking.store import check_store
from lingu_ray.runtime.tracking.store_uri import tracking_uri

_ANSWER_WITHIN_S = 90.0


def examine(config: Config) -> list[Finding]:
    """All findings: tracking store, Ray, resources, network between nodes, and what each node is like."""
    found = [_attempt("tracking", lambda: _tracking(config)), _attempt("ray", lambda: _ray(config))]
    if found[-1].level == "error":
        return found
    return [*found, _attempt("resources", lambda: _resources(config)), *_nodes(config)]


def _attempt(check: str, run: Callable[[], str]) -> Finding:
    """The finding of a check that returns what is well, and raises what is not, with its cure."""
    try:
        return Finding(check, "ok", run())
    except (UserError, RayError, RuntimeError, OSError) as error:
        return Finding(check, "error", without_credentials(str(error).strip()))


def _tracking(config: Config) -> str:
    check_store(tracking_uri(config), config.tracking.experiment)
    return without_credentials(tracking_uri(config))


def _ray(config: Config) -> str:
    connect(config.ray)
    count = len(_alive())
    return f"{count} node{'s' if count > 1 else ''}, {ray.get_runtime_context().gcs_address}"


def _resources(config: Config) -> str:
    need = workers(config.ray, uses_gpu(config.ray))
    check_resources(need)
    return str(need) if has_room(need) else f"{need}, once the autoscaler has started the nodes"


def _alive() -> dict[str, str]:
    """Ids of the living nodes, by a name that tells them apart."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    return {f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})": node["NodeID"] for node in alive}


def _nodes(config: Config) -> list[Finding]:
    """Ask every node, through an actor there."""
    probes = {name: _probe(name, node_id) for name, node_id in _alive().items()}
    output, marker = str(config.output_dir), f".lingu-ray-doctor-{uuid.uuid4().hex[:8]}"
    paths = list(needed_paths(config).values())
    try:
        put_marker(output, marker)
        facts, silent = _answers({name: probe.facts.remote(output, marker, paths) for name, probe in probes.items()})
        if not facts:
            return silent
        answering = {name: probes[name] for name in facts}
        joined = bool(config.ray.address or os.environ.get("RAY_ADDRESS"))
        checked = check_nodes(list(facts.values()), config, elsewhere=joined, grows=has_autoscaler())
        return [*silent, _network(answering), *checked]
    except (OSError, UserError) as error:
        why = why_unwritable(Path(output), error) if isinstance(error, OSError) else error
        return [Finding("output", "error", f"output_dir={output}: cannot be written here: {why}", "give another one")]
    finally:
        remove_marker(output, marker)
        for probe in probes.values():
            ray.kill(probe)


def _probe(name: str, node_id: str) -> Any:
    """An actor on a node."""
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    actor = ray.remote(num_cpus=0)(Probe).options(scheduling_strategy=there)
    return actor.remote(name, is_driver=node_id == ray.get_runtime_context().get_node_id())


def _answers(refs: Mapping[str, Any]) -> tuple[dict[str, NodeFacts], list[Finding]]:
    """What the nodes answer, and a finding for each that does not."""
    answers, silent = {}, []
    ray.wait(list(refs.values()), num_returns=len(refs), timeout=_ANSWER_WITHIN_S)
    for name, ref in refs.items():
        try:
            answers[name] = ray.get(ref, timeout=0)
        except GetTimeoutError:
            message = f"{name} does not answer within {_ANSWER_WITHIN_S:g} s"
            silent.append(Finding("node", "error", message, "start Ray there again; its logs are in /tmp/ray"))
        except RayError as error:
            message = f"{name}: lingu_ray cannot be used there: {str(error).strip().splitlines()[-1]}"
            silent.append(Finding("node", "error", message, "install the same environment on every node"))
    return answers, silent


def _network(probes: Mapping[str, Any]) -> Finding:
    """Whether each node reaches each other at any port, as the workers' all-reduce does."""
    places = ray.get([probe.listening.remote() for probe in probes.values()])
    asked = {name: probe.unreachable.remote(places) for name, probe in probes.items()}
    if bad := [f"{name} does not reach {place}" for name, ref in asked.items() for place in ray.get(ref)]:
        cure = (
            "open all TCP ports between the nodes; where they have several networks, set NCCL_SOCKET_IFNAME and "
            "GLOO_SOCKET_IFNAME"
        )
        return Finding("network", "error", "; ".join(bad), cure)
    return Finding("network", "ok", "every node reaches every other one" if len(probes) > 1 else "one node")
