"""A Ray cluster with an autoscaler that starts real nodes on this machine: a head without CPUs, and nobody else yet.

Ray's own helper for this, `ray.cluster_utils.AutoscalingCluster`, stops every Ray of the machine.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from commands import Command
from nodes import OBJECT_STORE_MB

from benchmarks.ports import free_port

_HEAD_ID = "f" * 51 + "00000"
_PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"

_COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
"""Of the launcher, which nobody runs here."""


class AutoscaledCluster(Command):
    """Leaving its `with` block ends it. `nodes`: resources of the types of nodes it may start, `most` of each."""

    def __init__(self, *nodes: dict[str, float], most: int) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="lr-", ignore_cleanup_errors=True)
        gcs = free_port()
        self.address = f"127.0.0.1:{gcs}"
        path = Path(self.folder.name) / "autoscaling.yaml"
        path.write_text(json.dumps(_settings(self.address, nodes, most)))
        words = [
            "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=0", "--num-gpus=0", f"--port={gcs}",
            "--node-ip-address=127.0.0.1", f"--temp-dir={self.folder.name}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}",
            f"--ray-client-server-port={free_port()}", f"--object-store-memory={OBJECT_STORE_MB * 10**6}",
            f"--autoscaling-config={path}",
        ]  # fmt: skip
        environment = {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
            "RAY_CLOUD_INSTANCE_ID": _HEAD_ID,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_raylet_start_wait_time_s": "300",  # of a machine that does much else
        }
        super().__init__([sys.executable, "-m", "ray.scripts.scripts", *words], env={**os.environ, **environment})
        self.wait_for(lambda: "Ray runtime started" in self.printed)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.folder.cleanup()


def _settings(address: str, nodes: Sequence[dict[str, float]], most: int) -> dict[str, Any]:
    """What `ray up` gives to a head; the launcher's `fake_multinode` has no defaults in Ray's wheels, so `external`."""
    head = {"resources": {}, "node_config": {}, "max_workers": 0}
    types = {
        f"node-{i}": {
            "resources": {"object_store_memory": OBJECT_STORE_MB * 10**6, **resources},
            "node_config": {},
            "min_workers": 0,
            "max_workers": most,
        }
        for i, resources in enumerate(nodes)
    }
    return {
        "cluster_name": "test",
        "max_workers": most * len(nodes),
        "idle_timeout_minutes": 5,
        "provider": {
            "type": "external",
            "module": _PROVIDER,
            "gcs_address": address,
            "head_node_id": _HEAD_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,
        },
        "auth": {"ssh_user": "nobody"},
        **{f"{name}_commands": [] for name in _COMMANDS},
        "file_mounts": {},
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
        "head_node_type": "ray.head.default",
        "available_node_types": {"ray.head.default": head, **types},
    }
