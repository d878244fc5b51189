"""Ray's worker processes as forks of one that has imported torch and Transformers: seconds of processor time for each.

Ray starts a worker by `python setup_worker.py default_worker.py …`. Within `installed()` this file takes the place of
`setup_worker.py`: it hands arguments and environment to a server, whose fork becomes the worker. The server imports
libraries and does nothing else. Ray is imported by each worker itself, because Ray reads its environment on import.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ADDRESS = "LINGU_RAY_WARM_WORKERS"
"""Environment variable: the server's socket. Set while there is a server."""
FORKS = "LINGU_RAY_FORKS"
"""Environment variable: a file to which each fork appends its process id, for who has to find them."""
IMPORTED = (
    "lingu_ray.distill.student",
    "lingu_ray.distill.teacher",
    "lingu_ray.distill.pair",
    "lingu_ray.corpus.encode",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "pandas",
    "pyarrow.dataset",
    "mlflow",
    "sqlalchemy.dialects.sqlite",
)


@contextmanager
def server(folder: Path) -> Iterator[None]:
    """Run the server, its socket in `folder`; requests that come before it has imported all wait."""
    address = folder / "warm"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(64)
        command = [sys.executable, __file__, "--serve", str(listener.fileno())]
        process = subprocess.Popen(
            command, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
        )
    os.environ[ADDRESS] = str(address)
    try:
        yield
    finally:
        del os.environ[ADDRESS]
        process.kill()
        process.wait()


@contextmanager
def installed() -> Iterator[None]:
    """A Ray that is started within takes its workers from the server."""
    from ray._private import ray_constants

    before = ray_constants.SETUP_WORKER_FILENAME
    ray_constants.SETUP_WORKER_FILENAME = __file__  # Ray joins it to its own folder: an absolute path stays as it is
    try:
        yield
    finally:
        ray_constants.SETUP_WORKER_FILENAME = before


def request_worker() -> None:
    """Ask the server for a fork that becomes the worker of this command line, with this environment and folder."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.environ[ADDRESS])
        request = {"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}
        server.sendall(json.dumps(request).encode())
        server.shutdown(socket.SHUT_WR)
        server.recv(1)  # nothing comes: the connection is closed when the fork is made


def serve(listener: socket.socket) -> None:
    """Import, then fork a worker for each request; ends when the process that started it does."""
    for name in IMPORTED:
        importlib.import_module(name)
    started_early = sorted({"ray", "grpc"} & sys.modules.keys())
    assert not started_early, f"not to be forked: {started_early}"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers
    parent = os.getppid()
    listener.settimeout(1)
    while os.getppid() == parent:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        with connection, connection.makefile() as file:
            request = json.load(file)
            forked = os.fork() == 0
        if forked:
            listener.close()
            return become_worker(**request)


def become_worker(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """Do what `setup_worker.py`, and the program that it executes, do in a process of their own."""
    os.setpgid(0, 0)  # as Ray's own workers: it kills the whole group of a worker that has ended
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if FORKS in os.environ:
        with open(os.environ[FORKS], "a") as file:
            file.write(f"{os.getpid()}\n")

    from ray._private.runtime_env.context import RuntimeEnvContext
    from ray._private.utils import update_envs
    from ray._private.workers.setup_worker import parser

    options, sys.argv = parser.parse_known_args(arguments)
    update_envs(RuntimeEnvContext.deserialize(options.serialized_runtime_env_context or "{}").env_vars)
    runpy.run_path(sys.argv[0], run_name="__main__")


def main() -> None:
    """What the command line asks for: the server, a module whose Ray takes its workers from it, or such a worker."""
    if sys.argv[1] == "--serve":
        serve(socket.socket(fileno=int(sys.argv[2])))
    elif sys.argv[1] == "--module":
        sys.argv = sys.argv[2:]
        with installed():
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        request_worker()


if __name__ == "__main__":
    main()
