"""Commands and Ray's processes as forks of a process that has imported torch, Transformers and Ray: each saves seconds.

Ray starts a worker by `python setup_worker.py default_worker.py …`. Within `installed()` this file takes the place of
`setup_worker.py`: it hands arguments and environment to a server, whose fork becomes the worker. Ray's monitors, its
dashboard and its agents, each started by `python file.py …`, are such forks, too. `Fork` asks the same server for a
command. The server imports libraries and does nothing else. Ray reads its environment on import: commands
and workers are forks of a fork that has imported it with their variables, one for each Ray and job.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ADDRESS = "LINGU_RAY_WARM_WORKERS"
"""Environment variable: the server's socket. Set while there is a server."""
FORKS = "LINGU_RAY_FORKS"
"""Environment variable: a file to which each fork appends its process id and when it began, so that it can be found."""
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
    "mlflow.store.tracking.sqlalchemy_store",
    "sqlalchemy.dialects.sqlite",
    "transformers.generation.candidate_generator",
    "lingu_ray.runtime.models.export",
    "lingu_ray.evaluation.engines.transformers_engine",
    "lingu_ray.evaluation.recovery",
    "lingu_ray.demo.prepare",
    "lingu_ray.report.plots",
)
IMPORTED_WITH_RAY = (
    "ray._private.workers.setup_worker",
    "ray._private.workers.default_worker",
    "ray._private.arrow_serialization",
    "ray.dag.compiled_dag_node",
    "ray.data",
    "ray.data._internal.issue_detection.issue_detector_configuration",
    "ray.train.torch",
    "pydantic.v1.fields",
    "tabulate",
    "lingu_ray.runtime.training.worker",
)
HELPERS = (
    "ray._private.log_monitor",
    "ray._private.runtime_env.agent.main",
    "ray.autoscaler._private.monitor",
    "ray.dashboard.agent",
    "ray.dashboard.dashboard",
    "ray.dashboard.modules.reporter.reporter_agent",
    "ray.dashboard.modules.log.log_agent",
    "ray.dashboard.modules.job.job_agent",
)
OF_A_NODE = {"RAY_NODE_ID", "RAY_RAYLET_PID"}
"""Variables that helpers read when they start, and workers on import."""


@contextmanager
def server(folder: Path) -> Iterator[None]:
    """Run the server, its socket in `folder`; fails where it cannot import all, as Ray would ask it without end."""
    address = folder / "warm"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(64)
        begun, ready = os.pipe()
        files = [listener.fileno(), ready]
        command = [sys.executable, __file__, "--serve", *map(str, files)]
        process = subprocess.Popen(command, pass_fds=files, stdin=subprocess.DEVNULL, start_new_session=True)
    os.close(ready)
    with os.fdopen(begun, "rb") as told:
        assert told.read(), "the server of warm workers ended as it imported: pytest -n 0 -s shows its traceback"
    os.environ[ADDRESS] = str(address)
    try:
        yield
    finally:
        del os.environ[ADDRESS]
        process.kill()
        process.wait()


@contextmanager
def installed() -> Iterator[None]:
    """A Ray that is started within takes its Python processes from the server."""
    from unittest.mock import patch

    from ray._private import ray_constants, services

    start = services.start_ray_process
    helper = [sys.executable, __file__, "--helper"]

    def start_by_fork(command: list[str], *arguments: Any, **more: Any) -> Any:
        if command[:2] == [sys.executable, "-u"]:  # the monitors
            command = [*helper, *command[2:]]
        return start(command, *arguments, **more)

    with (
        # Ray joins it to its own folder: an absolute path stays as it is
        patch.object(ray_constants, "SETUP_WORKER_FILENAME", __file__),
        patch.object(services, "start_ray_process", start_by_fork),
        # what begins the command lines of dashboard and agents
        patch.object(services, "_build_python_executable_command_memory_profileable", lambda *_, **__: helper),
    ):
        yield


def request_worker() -> None:
    """Ask for a fork that becomes the worker of this command line, with this environment and folder."""
    request = {"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}
    ask(place_of_forks(request["environment"]), request)


def place_of_forks(environment: Mapping[str, str], helper: bool = False) -> str:
    """The socket of the fork of the server that has imported Ray with such an environment; of one for its helpers."""
    return ask(environment[ADDRESS], {"environment": dict(environment), "helper": helper})


def ask(place: str, request: dict[str, object]) -> str:
    """Send a request to a socket; returns the answer, when the connection is closed."""
    with socket.socket(socket.AF_UNIX) as server, server.makefile() as answer:
        server.connect(place)
        server.sendall(json.dumps(request).encode())
        server.shutdown(socket.SHUT_WR)
        return answer.read()


class Fork:
    """`python -m module word …` in a fork of the server; has what is used here of a `subprocess.Popen`.

    `argv`: the module, or the path of a file, and its words; `files`: standard input, output and error. The command
    leads a session of its own, and is killed where this process ends before it.
    """

    def __init__(self, argv: Sequence[str], cwd: Path | None, env: Mapping[str, str], files: Sequence[int]):
        self.returncode: int | None = None
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(place_of_forks(env, helper=argv[0].endswith(".py")))
        request = {
            "module": argv[0],
            "arguments": argv[1:],
            "environment": dict(env),
            "folder": str(cwd or os.getcwd()),
        }
        socket.send_fds(self._connection, [b"\n"], files)
        self._connection.sendall(json.dumps(request).encode())
        self._connection.shutdown(socket.SHUT_WR)
        self.pid = int(self._connection.recv(20, socket.MSG_WAITALL))

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; returns the exit code. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("fork", timeout or 0)
            self.returncode = int(self._connection.recv(20))
            self._connection.close()
        return self.returncode

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone."""
        os.kill(self.pid, number)


def serve(listener: socket.socket, ready: int) -> None:
    """Import, tell so, then say for each environment where forks are made that have imported Ray with it."""
    parent = os.getppid()
    import_all(IMPORTED)
    started_early = sorted({"ray", "grpc"} & sys.modules.keys())
    assert not started_early, f"not to be forked: {started_early}"
    os.write(ready, b"ready")
    os.close(ready)
    makers: dict[tuple[bool, frozenset[tuple[str, str]]], str] = {}
    for connection, _, request in requests(listener, parent):
        helper, environment = request["helper"], request["environment"]
        late = OF_A_NODE if helper else set()
        of_ray = frozenset(item for item in environment.items() if item[0].startswith("RAY_") and item[0] not in late)
        key = (helper, of_ray)
        if key not in makers:
            makers[key] = f"{listener.getsockname()}-{len(makers)}"
            asking = os.getpid() if helper else int(environment.get("RAY_RAYLET_PID", os.getpid()))
            with socket.socket(socket.AF_UNIX) as forks:
                forks.bind(makers[key])
                forks.listen(64)
                if os.fork() == 0:
                    connection.close()
                    listener.close()
                    return serve_forks(forks, environment, HELPERS if helper else IMPORTED_WITH_RAY, asking)
        connection.sendall(makers[key].encode())
        connection.close()


def serve_forks(listener: socket.socket, environment: dict[str, str], names: Sequence[str], asking: int) -> None:
    """Import Ray and modules with an environment, then make a command, where files come with the request, or a worker.

    `asking`: the process with which this ends: the raylet of workers, else the server.
    """
    settle(environment, os.getcwd())
    importlib.import_module("lingu_ray.runtime.cluster.connect")  # sets what Ray reads on import
    import ray.actor

    ray.actor.ActorClassID = ClassId
    import_all(names)
    assert random_id() != random_id(), "forks would give different things one id"
    set_by_imports = {name: value for name, value in os.environ.items() if name not in environment}
    for connection, files, request in requests(listener, asking):
        if os.fork() == 0:
            listener.close()
            if files:  # a command's own imports would have set them; workers are told what they need
                request["environment"] = set_by_imports | request["environment"]
                return become_command(connection, files, **request)
            return become_worker(connection, **request)
        connection.close()
        for number in files:
            os.close(number)


class ClassId:
    """Ids of actor classes, made without Ray's random numbers: after the first of them forks would all go on alike."""

    @staticmethod
    def from_random() -> Any:
        from ray._raylet import ActorClassID

        return ActorClassID(os.urandom(ActorClassID.size()))


def random_id() -> bytes:
    """The first random id that Ray gives in a fork of this process."""
    from ray._raylet import JobID, PlacementGroupID

    begun, ready = os.pipe()
    if os.fork() == 0:
        os.write(ready, PlacementGroupID.of(JobID.from_int(1)).binary())
        os._exit(0)
    os.close(ready)
    with os.fdopen(begun, "rb") as given:
        return given.read()


def import_all(names: Sequence[str]) -> None:
    """Import modules, and keep collections off what was imported: in forks they would touch, and so copy, all of it."""
    for name in names:
        importlib.import_module(name)
    gc.freeze()


def requests(listener: socket.socket, until: int) -> Iterator[tuple[socket.socket, list[int], dict[str, Any]]]:
    """Connection, files and content of each request, as long as the process `until` lives."""
    from lingu_ray.atomic import is_alive  # which whoever asks for a worker does without

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for forks
    listener.settimeout(1)
    while is_alive(until):
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        message, files, *_ = socket.recv_fds(connection, 1, 3)
        with connection.makefile() as file:
            request = json.loads(message.decode() + file.read())
        yield connection, files, request


def become_command(
    connection: socket.socket,
    files: list[int],
    module: str,
    arguments: list[str],
    environment: dict[str, str],
    folder: str,
) -> None:
    """Make the command as another fork, tell its process id, and its exit code in the end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if pid := os.fork():
        connection.sendall(f"{pid:20}".encode())
        ends = select.poll()
        ends.register(connection, 0)  # that nobody waits any more
        ends.register(os.pidfd_open(pid), select.POLLIN)
        if connection.fileno() in dict(ends.poll()):
            os.kill(pid, signal.SIGKILL)
            os._exit(0)
        connection.sendall(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
        os._exit(0)
    os.setsid()
    connection.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
    settle(environment, folder)
    sys.argv = ["-m", *arguments]
    sys.path[0] = folder
    with installed():
        if module.endswith(".py"):
            runpy.run_path(module, run_name="__main__")
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)


def become_worker(connection: socket.socket, arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """Do what `setup_worker.py`, and the program that it executes, do in a process of their own."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection.close()
    os.setpgid(0, 0)  # as Ray's own workers: it kills the whole group of a worker that has ended
    settle(environment, folder)
    if FORKS in os.environ:
        import psutil

        with open(os.environ[FORKS], "a", encoding="utf-8") as file:
            # since when, too: its number alone would name another process, once this one has ended
            file.write(f"{os.getpid()} {psutil.Process().create_time()}\n")

    from ray._private.runtime_env.context import RuntimeEnvContext
    from ray._private.utils import update_envs
    from ray._private.workers.setup_worker import parser

    options, sys.argv = parser.parse_known_args(arguments)
    context = RuntimeEnvContext.deserialize(options.serialized_runtime_env_context or "{}")
    update_envs(context.env_vars)
    if context.command_prefix:  # of a job: its working directory
        cd, folder, _ = context.command_prefix
        assert cd == "cd", context.command_prefix
        os.chdir(folder)
    if sys.argv[0] == "-m":  # Ray's client server, which `ray start --head` wants alive, and no test calls
        signal.pause()
    runpy.run_path(sys.argv[0], run_name="__main__")


def settle(environment: dict[str, str], folder: str) -> None:
    """Take the environment and the working directory of who asked for this process."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)


def main() -> None:
    """What the command line asks for: the server, or a helper or a worker of Ray."""
    if sys.argv[1] == "--serve":
        serve(socket.socket(fileno=int(sys.argv[2])), ready=int(sys.argv[3]))
    elif sys.argv[1] == "--helper":
        sys.exit(Fork(sys.argv[2:], None, os.environ, files=[0, 1, 2]).wait())
    else:
        request_worker()


if __name__ == "__main__":
    main()
