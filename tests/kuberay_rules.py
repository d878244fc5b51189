"""What KubeRay 1.7 accepts: its OpenAPI schemas, made strict, and its own rules, which no schema has."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

Tree = dict[str, Any]

# Schemas of the custom resources as `<kind>.v1.schema.json.gz`: of KubeRay, so they are not kept in this repository.
SCHEMAS = Path(os.environ.get("LINGU_RAY_KUBERAY_SCHEMAS", Path(__file__).parents[2] / "shared/clusters"))


def schema_file(kind: str) -> Path:
    """Where the schema of a kind of KubeRay's is, if it is there."""
    return SCHEMAS / f"{kind.lower()}.v1.schema.json.gz"


@cache
def strict_schema(kind: str) -> Tree:
    """The schema of a kind, in which fields that it does not name are errors, as `kubectl` with validation has it."""
    schema = _strict(json.loads(gzip.decompress(schema_file(kind).read_bytes())))
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own
    return schema


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _strict(value) for key, value in node.items()}
    if isinstance(node.get("properties"), dict) and not node.get("x-kubernetes-preserve-unknown-fields"):
        node.setdefault("additionalProperties", False)
    if node.pop("x-kubernetes-int-or-string", False) is True:
        node.pop("type", None)
        node["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if node.pop("nullable", False) is True and isinstance(node.get("type"), str):
        node["type"] = [node["type"], "null"]
    return node


def schema_problems(manifest: Tree) -> list[str]:
    """What the strict schema finds, a line each: path and reason."""
    found = Draft202012Validator(strict_schema(manifest["kind"])).iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in found]


def rule_problems(manifest: Tree) -> list[str]:
    """What KubeRay's operator would refuse beyond the schema."""
    kind, spec = manifest["kind"], manifest["spec"]
    longest = {"RayJob": 47, "RayCluster": 53}[kind]
    name = manifest["metadata"]["name"]
    problems = [] if re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= longest else [f"name {name}"]
    if kind == "RayCluster":
        return problems + list(_cluster_problems(spec))
    return problems + list(_job_problems(spec)) + list(_cluster_problems(spec["rayClusterSpec"]))


def _job_problems(spec: Tree) -> Iterator[str]:
    if not spec.get("shutdownAfterJobFinishes"):
        for field in ("ttlSecondsAfterFinished", "suspend"):
            if spec.get(field):
                yield f"{field} without shutdownAfterJobFinishes"
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(field, 1) <= 0:
            yield f"{field} must be positive"
    if spec.get("backoffLimit", 0) < 0 or (
        spec.get("backoffLimit") and spec.get("submissionMode") == "InteractiveMode"
    ):
        yield "backoffLimit"
    try:
        if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
            yield "runtimeEnvYAML is no mapping"
    except yaml.YAMLError as error:
        yield f"runtimeEnvYAML: {error}"
    if spec.get("submissionMode") == "SidecarMode" and ({"submitterPodTemplate", "submitterConfig"} & set(spec)):
        yield "SidecarMode has no submitter"


def _cluster_problems(spec: Tree) -> Iterator[str]:
    autoscaling = spec.get("enableInTreeAutoscaling", False)
    v2 = autoscaling and spec.get("autoscalerOptions", {}).get("version") == "v2"
    if spec.get("authOptions", {}).get("mode") == "token":
        version = re.match(r"(\d+)\.(\d+)", spec.get("rayVersion", ""))
        if version is None or (int(version[1]), int(version[2])) < (2, 52):
            yield "authOptions.mode token needs a rayVersion of 2.52.0 or later"
    if spec.get("autoscalerOptions", {}).get("idleTimeoutSeconds", 0) < 0:
        yield "idleTimeoutSeconds is negative"
    head = spec["headGroupSpec"]
    for group in (head, *spec.get("workerGroupSpecs", [])):
        yield from _group_problems(group, autoscaling or group is head, v2)
    variables = {one["name"] for c in head["template"]["spec"]["containers"][:1] for one in c.get("env", [])}
    if "RAY_enable_autoscaler_v2" in variables:
        yield "RAY_enable_autoscaler_v2 beside autoscalerOptions.version, or without an autoscaler"
    if variables & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"}:
        yield "Redis without gcsFaultToleranceOptions"


def _group_problems(group: Tree, may_omit_replicas: bool, v2: bool) -> Iterator[str]:
    name, start = group.get("groupName", "head"), group.get("rayStartParams", {})
    fewest, most = group.get("minReplicas"), group.get("maxReplicas")
    if not group["template"]["spec"]["containers"]:
        yield f"{name}: no container"
    if not may_omit_replicas and (fewest is None or most is None):
        yield f"{name}: minReplicas and maxReplicas are needed without an autoscaler"
    if (fewest or 0) < 0 or (fewest is not None and most is not None and fewest > most):
        yield f"{name}: minReplicas"
    if "labels" in start:
        yield f"{name}: labels in rayStartParams"
    if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(start):
        yield f"{name}: resources twice"
    if v2 and group["template"]["spec"].get("restartPolicy", "Never") != "Never":
        yield f"{name}: restartPolicy must be Never with autoscaler v2"
