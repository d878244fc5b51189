"""What a node is like, found out on the node itself. Imports neither torch nor MLflow: an answer takes seconds."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import ray
from ray._private.authentication.authentication_utils import is_token_auth_enabled

from lingu_ray import storage
from lingu_ray.errors import UserError
from lingu_ray.runtime.doctor.gpu import GpuFacts, gpu_facts
from lingu_ray.runtime.doctor.paths import is_here
from lingu_ray.runtime.run_folder.job_stop import STOP_WAIT
from lingu_ray.runtime.tracking.environment import versions

PACKAGES = ("ray", "torch", "transformers")
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Settings of torch's allocator: the variable's name, and its older one."""
ATTENTIONS = {"flash_attention_2": "flash-attn", "flash_attention_3": "flash-attn-3"}
"""The package of each `train.attention` that has one. By name, since flash-attn 4 has the module of flash-attn 2."""
VARIABLES = ("RAY_free_objects_batch_size", STOP_WAIT, *ALLOCATOR)
MARKER = b"lingu-ray doctor\n"
_CONNECT_WITHIN_S = 3.0


@dataclass(frozen=True)
class NodeFacts:
    """A node as a run finds it. `missing`: paths that are not there, and patterns that match nothing.

    `is_driver`: whether the command runs there. `attentions`: keys of `ATTENTIONS` that are there.
    `output_error`: why the run's folder cannot be used there; None: it can.
    """

    node: str
    is_driver: bool
    versions: Mapping[str, str]
    gpu: GpuFacts
    shared_memory: int
    variables: Mapping[str, str | None]
    token: bool
    output_error: str | None
    missing: Sequence[str]
    attentions: Sequence[str]


class Probe:
    """An actor on a node that looks around there."""

    def __init__(self, name: str, is_driver: bool) -> None:
        self.name, self.is_driver = name, is_driver
        self.address = ray.util.get_node_ip_address()
        self.listener = socket.create_server((self.address, 0))

    def facts(self, output: str, marker: str, paths: Sequence[str]) -> NodeFacts:
        """The node, with the folder `output`, in which `marker` lies, and local paths and patterns that are needed."""
        return NodeFacts(
            node=self.name,
            is_driver=self.is_driver,
            versions={name: number or "missing" for name, number in versions(PACKAGES).items()},
            gpu=gpu_facts(),
            shared_memory=shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else 0,
            variables={name: os.environ.get(name) for name in VARIABLES},
            token=is_token_auth_enabled(),
            output_error=output_error(output, marker),
            missing=[path for path in paths if not is_here(path)],
            attentions=[name for name, package in ATTENTIONS.items() if versions((package,))[package]],
        )

    def listening(self) -> tuple[str, int]:
        """Address and port at which others reach this actor."""
        return self.address, self.listener.getsockname()[1]

    def unreachable(self, addresses: Sequence[tuple[str, int]]) -> list[str]:
        """Those of the addresses at which nothing answers this node."""
        missing = []
        for address in addresses:
            try:
                socket.create_connection(address, timeout=_CONNECT_WITHIN_S).close()
            except OSError as error:
                missing.append(f"{address[0]} ({error})")
        return missing


def put_marker(output: str, marker: str) -> None:
    """Make the folder, local or in a bucket, and write the file `marker` in it. Raises OSError, or UserError."""
    if storage.is_remote(output):
        storage.put(MARKER, storage.join(output, marker))
        return
    Path(output).mkdir(parents=True, exist_ok=True)
    Path(output, marker).write_bytes(MARKER)


def remove_marker(output: str, marker: str) -> None:
    """Remove the file, where it is."""
    with suppress(OSError, UserError):
        if storage.is_remote(output):
            storage.delete(storage.join(output, marker))
        else:
            Path(output, marker).unlink(missing_ok=True)


def output_error(output: str, marker: str) -> str | None:
    """Why this node cannot use the folder in which another one wrote `marker`; None where it can."""
    try:
        if not storage.is_file(storage.below(output, marker)):
            return "it is not the folder that this command sees: what was written there is missing"
        storage.check_writable(storage.place(output))
    except (OSError, UserError) as error:
        return f"it cannot be written: {error}"
    return None
