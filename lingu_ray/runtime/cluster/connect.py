"""Connecting to Ray: a job's cluster, one that is named, or this machine."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# A report blocks for one poll of the controller; printed lines would appear twice.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
# Some clouds give a machine half a minute to end: every second of it counts.
os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
# Ray Train counts on a dead node for up to 20 seconds, and waits for room there before it looks anew.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
# Objects are freed at once, not once a second: the next KV reuses their pages, which are mapped already. Writing to new
# pages takes several times as long. A cluster that was started elsewhere needs this in its own environment.
os.environ.setdefault("RAY_free_objects_batch_size", "1")

# oneDNN keeps a kernel for each shape of a product, and rows of ever other lengths make ever new ones. 1024 of them in
# each of two caches are a gigabyte, and another is lost between them. A step needs some forty, for all its layers.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
os.environ.setdefault("LRU_CACHE_CAPACITY", "128")

# A run has more processes than a small machine has cores, most of them waiting: Ray warns above four times this number.
os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(max(8, os.cpu_count() or 1)))

import grpc
import ray
from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS
from ray._private.services import canonicalize_bootstrap_address

from lingu_ray.config import RayConfig
from lingu_ray.errors import UserError
from lingu_ray.interrupt import exit_on_interrupt
from lingu_ray.runtime.cluster.linux import cores
from lingu_ray.runtime.run_folder.job_stop import job_variables

log = logging.getLogger(__name__)

_ANSWER_WITHIN_S = 10.0
_STARTS_SLOWLY = "node timed out during startup"
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}


def connect(settings: RayConfig) -> None:
    """Join the cluster of the settings or of the surrounding job; start Ray on this machine when there is none."""
    if ray.is_initialized():
        return
    address, setting = settings.address, "ray.address"
    if address is None:
        address, setting = os.environ.get("RAY_ADDRESS") or None, "RAY_ADDRESS"
    for name in ("ray._private.authentication", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)  # a notice about tokens, hints for Ray's own programmers
    if address is None:
        log.info("starting Ray on this machine")
        _start()
    else:
        log.info("joining the Ray cluster at %s", address)
        _join(address, setting)


def _start() -> None:
    if not os.path.isabs(os.path.expanduser("~")):
        raise UserError("no home folder of this user is known, where Ray keeps its token: set HOME to one")
    _keep_token_private()
    try:
        with exit_on_interrupt(), _in_groups_of_their_own():
            # Without `local` Ray joins what the last `ray start` on this machine left word of, be it gone
            ray.init("local", include_dashboard=False, runtime_env={"env_vars": worker_environment()}, **_QUIET)
    except OSError as error:
        if (token := Path.home() / ".ray").is_relative_to(error.filename or token / "none"):
            raise UserError(
                f"Ray cannot keep its token in {token}: {error.strerror}. Set HOME to a folder that can be written"
            ) from error
        raise UserError(
            f"Ray cannot start on this machine: {error}. Set RAY_TMPDIR to a folder for its sockets and logs that can "
            "be written and has a short path, such as RAY_TMPDIR=/tmp"
        ) from error
    except Exception as error:  # which has no type of its own
        if _STARTS_SLOWLY not in str(error):
            raise
        logs = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray/session_latest/logs")
        raise UserError(
            "Ray does not start on this machine in the time that it gives itself. Run the same command again when the "
            f"machine is less busy; where it was idle, {logs} says why"
        ) from error


def _keep_token_private() -> None:
    """Close `~/.ray` to others: Ray writes its token there for all to read, and who has it may run anything here."""
    with suppress(OSError):  # Ray says what is wrong with the folder, where it needs it
        folder = Path.home() / ".ray"
        folder.mkdir(exist_ok=True)
        folder.chmod(0o700)


def _join(address: str, setting: str) -> None:
    try:
        _require_answer(address, setting)
        with exit_on_interrupt():
            ray.init(address=address, runtime_env={"env_vars": worker_environment(RAY_ADDRESS=address)}, **_QUIET)
    except ConnectionError as error:
        raise UserError(f"{setting}={address}: no Ray cluster answers there. {error}") from error


_leaving_group = False


def _leave_group() -> None:
    if _leaving_group:
        os.setpgid(0, 0)


os.register_at_fork(after_in_child=_leave_group)


@contextmanager
def _in_groups_of_their_own() -> Iterator[None]:
    """Start processes in groups of their own, so that a signal to this process's group reaches the command alone.

    The command asks the workers to save; Ray's own processes would end at once, and the workers with them.
    """
    global _leaving_group
    _leaving_group = True
    try:
        yield
    finally:
        _leaving_group = False


def _require_answer(address: str, setting: str) -> None:
    """Raise UserError where nothing answers at an address; Ray itself would try for minutes.

    `setting`: what names the address. Asked as Ray asks: past the proxies of the environment, unless it is told.
    ConnectionError: `auto` finds no cluster; what the last `ray start` on this machine left word of may be gone.
    """
    named = f"{setting}={address}"
    if address == "auto":
        address = canonicalize_bootstrap_address(address) or "local"
        named += f", which is {address} here"
    place = re.fullmatch(r"(ray://)?([\w.-]+|\[[\da-fA-F:]+\]):(\d+)", address)
    if address == "local" or os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    if place is None:
        raise UserError(
            f"{named}: give auto, HOST:6379 of the head node, or ray://HOST:10001. "
            "The address that begins with http:// is for `ray job submit`"
        )
    with grpc.insecure_channel(f"{place[2]}:{place[3]}", options=GLOBAL_GRPC_OPTIONS) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_ANSWER_WITHIN_S)
        except grpc.FutureTimeoutError as error:
            raise UserError(
                f"{named}: no Ray cluster answers there within {_ANSWER_WITHIN_S:g} s; "
                "correct the address, or start the cluster"
            ) from error


KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_PASSED_ON = (
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S",
    "RAY_TRAIN_ENABLE_PRINT_PATCH",
    "OMP_WAIT_POLICY",
    "TORCH_CUDNN_SDPA_DEPRIORITIZED",
    *KERNEL_CACHES,
)
_PASSED_ON_PREFIXES = ("NCCL_", "TORCH_NCCL_", "GLOO_", "PYTORCH_", "VLLM_", "HF_")
_SECRET = re.compile("TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL")


def worker_environment(**more: str) -> dict[str, str]:
    """Variables of this process that workers on other nodes get, and `more`.

    No secrets: Ray shows and logs what it hands on. None of the runtime environment of a job, which workers have
    anyway: Ray refuses a driver that names one again.
    """
    names = (name for name in os.environ if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES))
    passed_on = {name: os.environ[name] for name in names if not _SECRET.search(name)} | more
    of_the_job = job_variables()
    return {name: value for name, value in passed_on.items() if name not in of_the_job}


def encoding_threads(settings: RayConfig, on_gpu: bool, sharers: int = 1) -> int:
    """Threads that decode and encode a worker's rows: one for each CPU that is reserved for it, at least 2.

    Beside a GPU the cores compute nothing else, so there it is this worker's part of them, if that is more.
    """
    idle = cores() // sharers if on_gpu else 0
    return max(2, int(settings.cpus_per_worker), idle)


def threads(settings: RayConfig, sharers: int) -> int:
    """PyTorch threads of one of `sharers` processes that share this node's cores."""
    return settings.threads_per_worker or max(1, cores() // sharers)
