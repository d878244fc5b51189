"""clusters/aws.yaml and gcp.yaml: Ray's launcher accepts them, and AWS, as moto plays it, starts the machines."""

from __future__ import annotations

import copy
import importlib.resources
import importlib.util
import json
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from lingu_ray import __version__

pytestmark = pytest.mark.slow  # starts launchers, and waits for them

ROOT = Path(__file__).parents[2]
CLOUDS = ("aws", "gcp")

Tree = dict[str, Any]


def launcher(cloud: str) -> Tree:
    return yaml.safe_load((ROOT / f"clusters/{cloud}.yaml").read_text("utf-8"))


def validate(config: Tree) -> None:
    """Ray's own check, as `ray up` makes it first."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_ray_accepts(cloud: str):
    """The launcher's schema finds nothing, and finds a planted field."""
    validate(launcher(cloud))
    with pytest.raises(Exception, match="idle_timeout_minuts"):
        validate(launcher(cloud) | {"idle_timeout_minuts": 5})


@pytest.mark.parametrize("cloud", CLOUDS)
def test_commands_on_the_machines_are_shell(cloud: str):
    """shellcheck accepts what the launcher runs on its machines and in the image."""
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    config = launcher(cloud)
    for key in ("initialization_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        for command in config[key]:
            script = "#!/bin/bash\n" + command.replace("$RAY_HEAD_IP", '"$RAY_HEAD_IP"')
            done = subprocess.run([shellcheck, "-"], input=script, text=True, capture_output=True)
            assert done.stdout == "", done.stdout


@pytest.mark.parametrize("cloud", CLOUDS)
def test_what_the_guide_promises(cloud: str):
    """The token travels as a file, Ray runs in our image with room in /dev/shm, machines are ended and not stopped,
    the dashboard is for the head alone, and there may be as many workers as a run is given, and none without one."""
    config = launcher(cloud)
    assert config["file_mounts"] == {
        "~/.ray/auth_token": "~/.ray/auth_token",
        "~/spot_node.py": "clusters/spot_node.py",
    }
    assert config["docker"]["image"] == f"lingu-ray:{__version__}"
    assert "--shm-size=16g" in config["docker"]["run_options"]
    assert config["provider"]["cache_stopped_nodes"] is False
    head, worker = config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in head and "--num-cpus=0" in head and "$RAY_HEAD_IP:6379" in worker
    assert config["setup_commands"] == config["head_setup_commands"] == []  # Ray's own would install another Ray
    workers = config["available_node_types"]["gpu"]
    assert workers["min_workers"] == 0 and workers["max_workers"] == config["max_workers"] == 2


def compute_problems(instance: Tree) -> list[str]:
    """What Google's own description of Compute Engine, strict, has against an instance."""
    discovery = pytest.importorskip("googleapiclient.discovery_cache.documents", reason="no google-api-python-client")
    jsonschema = pytest.importorskip("jsonschema")
    described = json.loads((importlib.resources.files(discovery) / "compute.v1.json").read_text("utf-8"))["schemas"]

    def strict(node: Any) -> Any:
        if isinstance(node, list):
            return [strict(item) for item in node]
        if not isinstance(node, dict):
            return node
        if isinstance(node.get("$ref"), str):
            return {"$ref": f"#/$defs/{node['$ref']}"}
        node = {key: strict(value) for key, value in node.items() if key not in ("id", "description", "format")}
        if "properties" in node:
            node.setdefault("additionalProperties", False)
        return node

    # Numbers of 64 bits are strings in Google's JSON; its clients take both.
    definitions = {name: strict({"properties": {}} | schema) for name, schema in described.items()}
    definitions["AttachedDiskInitializeParams"]["properties"]["diskSizeGb"] = {"type": ["string", "integer"]}
    schema = {"$ref": "#/$defs/Instance", "$defs": definitions}
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(instance)]


def test_google_knows_the_machines():
    """Every field of the nodes is one of Compute Engine's, a planted one is not; workers are spot, the head is not."""
    types = launcher("gcp")["available_node_types"]
    for node_type in types.values():
        assert compute_problems(node_type["node_config"]) == []
    head, worker = types["head"]["node_config"], types["gpu"]["node_config"]
    assert worker["scheduling"]["provisioningModel"] == "SPOT" and "scheduling" not in head
    assert worker["scheduling"]["instanceTerminationAction"] == "DELETE"
    for planted in ({"provisioningModle": "SPOT"}, {"provisioningModel": "SPOTTY"}):
        assert compute_problems(worker | {"scheduling": planted})


def test_amazon_knows_the_machines():
    """Every field of the nodes is one of RunInstances, a planted one is not; workers are spot, the head is not."""
    session = pytest.importorskip("botocore.session", reason="boto3 is not installed")
    from botocore.validate import ParamValidator

    run_instances = session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    types = launcher("aws")["available_node_types"]

    def problems(node: Tree) -> bool:
        return ParamValidator().validate(node | {"MinCount": 1, "MaxCount": 1}, run_instances).has_errors()

    assert not any(problems(node_type["node_config"]) for node_type in types.values())
    assert problems(types["gpu"]["node_config"] | {"InstanceMarketOption": {"MarketType": "spot"}})
    assert types["gpu"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert "InstanceMarketOptions" not in types["head"]["node_config"]


@pytest.fixture
def amazon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """An AWS on this machine, with nobody's credentials and a home folder of its own; yields its address."""
    moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("token")
    settings = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_EC2_METADATA_DISABLED": "true",
                "MOTO_IAM_LOAD_MANAGED_POLICIES": "true", "HOME": str(tmp_path)}  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    yield f"http://{host}:{port}"
    server.stop()


@pytest.mark.long
def test_ray_starts_the_machines_on_aws(amazon: str):
    """Ray's launcher prepares an account and starts head and workers: on demand and spot, with encrypted disks and
    session tokens for metadata, open to each other and to ssh alone; it ends all of them."""
    import boto3
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.providers import _get_node_provider
    from ray.autoscaler._private.util import prepare_config

    config = bootstrap_aws(prepare_config(launcher("aws")))
    provider = _get_node_provider(config["provider"], config["cluster_name"])
    for name, kind in (("head", "head"), ("gpu", "worker"), ("gpu", "worker")):
        tags = {"ray-node-type": kind, "ray-cluster-name": "lingu-ray", "ray-user-node-type": name}
        provider.create_node(config["available_node_types"][name]["node_config"], tags, 1)

    ec2 = boto3.client("ec2", region_name=config["provider"]["region"])
    machines = [one for group in ec2.describe_instances()["Reservations"] for one in group["Instances"]]
    kinds = sorted((one["InstanceType"], one.get("InstanceLifecycle")) for one in machines)
    assert kinds == [("g6.2xlarge", "spot"), ("g6.2xlarge", "spot"), ("m6i.2xlarge", None)]
    assert all(one["MetadataOptions"]["HttpTokens"] == "required" for one in machines)
    assert all(volume["Encrypted"] for volume in ec2.describe_volumes()["Volumes"])
    (group,) = {one["SecurityGroups"][0]["GroupId"] for one in machines}
    rules = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissions"]
    assert [rule["FromPort"] for rule in rules if rule["IpRanges"]] == [22]
    assert all(pair["GroupId"] == group for rule in rules for pair in rule["UserIdGroupPairs"])

    provider.terminate_nodes(provider.non_terminated_nodes({}))
    states = [one["State"]["Name"] for group in ec2.describe_instances()["Reservations"] for one in group["Instances"]]
    assert set(states) == {"terminated"}


class Metadata(BaseHTTPRequestHandler):
    """A machine's metadata service, as AWS and Google document it: notice comes once `up` is there, not at once."""

    quiet = True
    up: Path

    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token" and int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"])
        self._say(200, "a token")

    def do_GET(self) -> None:
        cls, aws = type(self), self.path == "/latest/meta-data/spot/instance-action"
        assert aws or self.path == "/computeMetadata/v1/instance/preempted", self.path
        allowed = self.headers["X-aws-ec2-metadata-token"] == "a token" or self.headers["Metadata-Flavor"] == "Google"
        if not allowed:
            self._say(403, "")
        elif cls.quiet or not cls.up.exists():
            cls.quiet = False
            self._say(404 if aws else 200, "FALSE")
        else:
            self._say(200, json.dumps({"action": "terminate", "time": "2026-01-01T00:00:00Z"}) if aws else "TRUE")

    def _say(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


class NoHttp(socketserver.BaseRequestHandler):
    """What else may answer at the address."""

    def handle(self) -> None:
        self.request.recv(4096)
        self.request.sendall(b"no HTTP\r\n\r\n")


# Says that it drains, as `ray start --block` does at SIGTERM, or ends by itself with 5; up once the file is there.
NODE = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("drained", flush=True), sys.exit(3)))
pathlib.Path(sys.argv[2]).touch()
time.sleep(float(sys.argv[1]))
sys.exit(5)
"""


@pytest.fixture
def spot_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """clusters/spot_node.py, which asks a metadata service of this machine ten times a second, and no proxy."""
    server = HTTPServer(("127.0.0.1", 0), type("Service", (Metadata,), {"up": tmp_path / "up"}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_port}"
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{address}/")
    monkeypatch.setenv("GCE_METADATA_HOST", address)
    for name, value in {"http_proxy": "http://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # into clusters/, whose files other tests read
    spec = importlib.util.spec_from_file_location("spot_node", ROOT / "clusters/spot_node.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "EVERY_S", 0.1)
    handler = signal.getsignal(signal.SIGTERM)
    yield module
    signal.signal(signal.SIGTERM, handler)
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_node_drains_at_the_clouds_notice(
    cloud: str,
    spot_node: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    """At the notice, and not before, Ray gets SIGTERM; a service that is away, or another one, is said once, and Ray
    runs on to its own end."""
    node, up = [sys.executable, "-c", NODE], str(tmp_path / "up")
    assert spot_node.run(cloud, [*node, "60", up]) == 3
    assert capfd.readouterr().out == f"{cloud} takes this machine away: Ray drains it\ndrained\n"
    with socketserver.TCPServer(("127.0.0.1", 0), NoHttp) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        for address in ("127.0.0.1:9", f"127.0.0.1:{other.server_address[1]}"):
            for name in ("AWS", "GCP"):
                monkeypatch.setattr(spot_node, name, f"http://{address}")
            assert spot_node.run(cloud, [*node, "0.5", up]) == 5
            assert capfd.readouterr().out.count("does not answer, and is asked again") == 1
        other.shutdown()


def test_launchers_start_ray_so(spot_node: ModuleType):
    """Workers are started by it, in the background, with less time to drain than the cloud gives."""
    for cloud, notice_s in (("aws", 120), ("gcp", 30)):
        command = launcher(cloud)["worker_start_ray_commands"][-1]
        assert f"python ~/spot_node.py {cloud} ray start --block" in command and command.endswith("&")
        assert cloud in spot_node.CLOUDS
        assert int(command.split("DRAIN_TIMEOUT_S=")[1].split()[0]) <= notice_s - 10
