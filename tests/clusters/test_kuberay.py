"""clusters/kuberay: manifests that KubeRay, Kubernetes and Kueue accept, and what the guide promises of them."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_files import FILE

from lingu_ray import __version__
from lingu_ray.config.command_line import load_config

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "clusters/kuberay"
rules = pytest.importorskip("kuberay_rules", reason="jsonschema is not installed")


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text("utf-8")))


def manifest(kind: str) -> dict[str, Any]:
    (found,) = documents(f"{kind.lower()}.yaml")
    assert found["kind"] == kind
    return found


def problems(one: dict[str, Any]) -> list[str]:
    """All that schema and rules have against a manifest of KubeRay's; without the schema there is nothing to say."""
    if not rules.schema_file(one["kind"]).exists():
        pytest.skip(f"KubeRay's schemas are not in {rules.SCHEMAS}: set LINGU_RAY_KUBERAY_SCHEMAS")
    found = rules.schema_problems(one)
    return found or rules.rule_problems(one)


@pytest.mark.parametrize("kind", ["RayJob", "RayCluster"])
def test_kuberay_accepts(kind: str):
    """Schema and rules find nothing; the job's cluster is the one that stays."""
    one = manifest(kind)
    assert problems(one) == []
    if kind == "RayJob":
        assert one["spec"]["rayClusterSpec"] == manifest("RayCluster")["spec"]


def put(tree: Any, path: str, value: Any) -> None:
    """Set what is at a path of keys and positions; None removes it."""
    *way, last = (int(key) if key.isdigit() else key for key in path.split("/"))
    for key in way:
        tree = tree[key]
    if value is None:
        del tree[last]
    else:
        tree[last] = value


CLUSTER = "spec/rayClusterSpec"
HEAD = f"{CLUSTER}/headGroupSpec"
WORKERS = f"{CLUSTER}/workerGroupSpecs/0"
MISTAKES = {
    "a field's name": ("spec/backofLimit", 3, "backofLimit"),
    "a field's name deep inside": (f"{WORKERS}/template/spec/tolerations/0/operatorr", "Exists", "operatorr"),
    "a field at the wrong level": (f"{WORKERS}/terminationGracePeriodSeconds", 120, "terminationGracePeriodSeconds"),
    "a value's type": ("spec/backoffLimit", "3", "backoffLimit"),
    "an unknown choice": (f"{CLUSTER}/authOptions/mode", "tokens", "authOptions.mode"),
    "a name in capitals": ("metadata/name", "Lingu_Ray", "name Lingu_Ray"),
    "a token without a version": (f"{CLUSTER}/rayVersion", None, "rayVersion"),
    "a lifetime of a cluster that stays": ("spec/shutdownAfterJobFinishes", False, "ttlSecondsAfterFinished"),
    "pods that start again": (f"{WORKERS}/template/spec/restartPolicy", "OnFailure", "restartPolicy"),
    "more workers at least than at most": (f"{WORKERS}/minReplicas", 9, "minReplicas"),
    "bad YAML inside": ("spec/runtimeEnvYAML", "env_vars: {", "runtimeEnvYAML"),
    "no container": (f"{HEAD}/template/spec/containers", [], "container"),
    "labels of Ray": (f"{WORKERS}/rayStartParams/labels", "a=b", "labels"),
    "an autoscaler chosen twice": (
        f"{HEAD}/template/spec/containers/0/env/0/name", "RAY_enable_autoscaler_v2", "autoscaler_v2"
    ),
}  # fmt: skip


@pytest.mark.parametrize("path, value, named", MISTAKES.values(), ids=MISTAKES)
def test_planted_mistakes_are_found(path: str, value: Any, named: str):
    """Each mistake, planted in the job, is found and named."""
    job = copy.deepcopy(manifest("RayJob"))
    put(job, path, value)
    assert named in "\n".join(problems(job))


CORE = [("storage.yaml", 0), *(("mlflow.yaml", i) for i in range(4))]


@pytest.mark.parametrize("name, position", CORE)
def test_kubernetes_accepts(name: str, position: int):
    """The other objects are Kubernetes' own; an unknown field, planted, is an error."""
    validate = pytest.importorskip("kubernetes_validate")
    one = documents(name)[position]
    validate.validate(one, "1.37", strict=True)
    one["spec"]["storageClasName"] = "fast"
    with pytest.raises(validate.ValidationError, match="storageClasName"):
        validate.validate(one, "1.37", strict=True)


@pytest.mark.parametrize("kind", ["RayJob", "RayCluster"])
def test_pod_templates_are_kubernetes(kind: str):
    """Pods of both groups pass Kubernetes' own schema, which knows more than KubeRay's copy of it."""
    validate = pytest.importorskip("kubernetes_validate")
    for pod in pods(manifest(kind)):
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"} | pod["metadata"], "spec": pod["spec"]}
        validate.validate(whole, "1.37", strict=True)


def pods(one: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pod templates, the head's first."""
    cluster = one["spec"].get("rayClusterSpec", one["spec"])
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]


def size(quantity: str) -> int:
    """Bytes of a Kubernetes quantity in Gi."""
    return int(quantity.removesuffix("Gi")) << 30


def test_a_lost_pod_has_time_to_save():
    """Ray drains for less than the pod's grace, no hook ends it before, a lost cluster is tried again, and a stopped
    job may finish its step."""
    job = manifest("RayJob")["spec"]
    assert job["backoffLimit"] > 0 and job["submissionMode"] == "HTTPMode"
    wait = int(yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    assert wait == 120 and "gcsFaultToleranceOptions" not in job["rayClusterSpec"]
    for pod in pods(manifest("RayJob")):
        (container,) = pod["spec"]["containers"]
        drain = next(int(e["value"]) for e in container["env"] if e["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S")
        assert drain < pod["spec"]["terminationGracePeriodSeconds"] and "lifecycle" not in container


def test_memory_counts_shared_memory():
    """/dev/shm is a part of the pod's memory, and the object store fits into it; requests are what is used."""
    cluster = manifest("RayCluster")["spec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        shm = next(v["emptyDir"] for v in group["template"]["spec"]["volumes"] if v["name"] == "shm")
        assert shm["medium"] == "Memory" and 2 * size(shm["sizeLimit"]) <= size(
            container["resources"]["limits"]["memory"]
        )
        assert int(group["rayStartParams"].get("object-store-memory", 0)) < size(shm["sizeLimit"])
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_head_on_demand_workers_on_spot_nobody_is_root():
    """The head avoids spot nodes and takes no worker; GPU pods go to spot nodes and tolerate both taints."""
    cluster = manifest("RayCluster")["spec"]
    head, worker = pods(manifest("RayCluster"))
    spot = "cloud.google.com/gke-spot"
    (term,) = head["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert term == {"matchExpressions": [{"key": spot, "operator": "DoesNotExist"}]}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert worker["spec"]["nodeSelector"] == {spot: "true"}
    assert {one["key"] for one in worker["spec"]["tolerations"]} == {spot, "nvidia.com/gpu"}
    (mlflow,) = (one["spec"]["template"] for one in documents("mlflow.yaml") if one["kind"] == "Deployment")
    for pod in (head, worker, mlflow):
        assert pod["spec"]["securityContext"]["runAsNonRoot"] and pod["spec"]["securityContext"]["runAsUser"] == 1000
        assert not pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"]
        assert pod["spec"]["containers"][0]["image"] == f"lingu-ray:{__version__}"
    assert cluster["authOptions"] == {"mode": "token"}


def test_the_job_is_the_line_of_all_clusters(tmp_path: Path):
    """Its entrypoint is `python -m lingu_ray.train` with settings that exist, for as many workers as there are pods,
    and what it names is there: claim, MLflow's service."""
    job = manifest("RayJob")["spec"]
    words = shlex.split(job["entrypoint"])
    assert words[:4] == ["python", "-m", "lingu_ray.train", "/shared/my.yaml"]
    (tmp_path / "my.yaml").write_text(FILE)
    config = load_config([str(tmp_path / "my.yaml"), *words[4:]])
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    assert config.ray.num_workers == group["replicas"] == group["maxReplicas"] and group["minReplicas"] == 0
    names = {
        (one["kind"], one["metadata"]["name"]) for file in ("storage.yaml", "mlflow.yaml") for one in documents(file)
    }
    for pod in pods(manifest("RayJob")):
        claims = [
            v["persistentVolumeClaim"]["claimName"] for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v
        ]
        assert all(("PersistentVolumeClaim", claim) in names for claim in claims)
        uri = next(e["value"] for e in pod["spec"]["containers"][0]["env"] if e["name"] == "MLFLOW_TRACKING_URI")
        service = uri.removeprefix("http://").removesuffix(":5000")
        assert ("Service", service) in names


def test_the_queue_holds_whole_runs():
    """Kueue's objects name each other, and the quota is that of two runs of rayjob.yaml."""
    flavor, cluster_queue, local = documents("queue.yaml")
    assert {one["apiVersion"] for one in (flavor, cluster_queue, local)} == {"kueue.x-k8s.io/v1beta2"}
    assert local["spec"]["clusterQueue"] == cluster_queue["metadata"]["name"]
    (group,) = cluster_queue["spec"]["resourceGroups"]
    (of_flavor,) = group["flavors"]
    assert of_flavor["name"] == flavor["metadata"]["name"]
    quota = {one["name"]: one["nominalQuota"] for one in of_flavor["resources"]}
    head, worker = (pod["spec"]["containers"][0]["resources"]["requests"] for pod in pods(manifest("RayJob")))
    run = {
        "cpu": int(head["cpu"]) + 2 * int(worker["cpu"]),
        "memory": size(head["memory"]) + 2 * size(worker["memory"]),
        "nvidia.com/gpu": 2,
    }
    assert quota == {"cpu": str(2 * run["cpu"]), "memory": f"{2 * run['memory'] >> 30}Gi", "nvidia.com/gpu": "4"}
    assert group["coveredResources"] == list(quota)


@pytest.mark.slow
def test_mlflow_takes_its_arguments_and_answers_to_its_service():
    """The server's arguments are options of this MLflow, and it accepts the host names by which pods and a port-forward
    call it, and no others."""
    from mlflow.cli import cli
    from mlflow.server.security_utils import is_allowed_host_header

    (deployment,) = (one for one in documents("mlflow.yaml") if one["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["mlflow", "server"] and deployment["spec"]["replicas"] == 1
    options = cli.commands["server"].make_context("server", list(container["args"])).params
    assert options["backend_store_uri"].startswith("sqlite:////mlflow/") and options["workers"] == "1"
    hosts = options["allowed_hosts"].split(",")
    assert all(is_allowed_host_header(hosts, name) for name in ("lingu-ray-mlflow:5000", "localhost:5000"))
    assert not is_allowed_host_header(hosts, "elsewhere.example:5000")
