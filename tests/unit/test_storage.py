"""Object storage, on a real S3 server and the emulator of Google Cloud Storage."""

import io
import multiprocessing
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow
import pytest
from buckets import proxy_before

from lingu_ray import storage
from lingu_ray.errors import UserError
from lingu_ray.storage import connection, node_cache, objects

BOTH = pytest.mark.parametrize("bucket", ["s3", "gs"], indirect=True)
NOISE = random.Random(0).randbytes(3 << 20)


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once."""
    monkeypatch.setattr(connection, "WAITS_S", (0.01, 0.01))


@pytest.mark.slow
@BOTH
def test_objects_make_a_round_trip(bucket: str, tmp_path: Path):
    """What is put is read again to the bit, whole or in part; listed with its size; and gone when deleted."""
    (tmp_path / "file").write_bytes(NOISE)
    storage.put(tmp_path / "file", f"{bucket}/a/noise.bin")
    storage.put(b"short", f"{bucket}/a b/ü?#%.gz")
    assert storage.read_bytes(f"{bucket}/a/noise.bin") == NOISE
    assert storage.read_bytes(f"{bucket}/a b/ü?#%.gz") == b"short"
    assert [(entry.name, entry.size) for entry in storage.entries(bucket)] == [
        ("a b/ü?#%.gz", 5),
        ("a/noise.bin", len(NOISE)),
    ]
    with storage.open_file(f"{bucket}/a/noise.bin", buffering=1 << 16) as file:
        for position, count in ((5, 10), (len(NOISE) - 3, 10), (1 << 20, 1 << 20), (0, 1)):
            file.seek(position)
            assert file.read(count) == NOISE[position : position + count]
        assert (file.seek(-4, io.SEEK_END), file.read()) == (len(NOISE) - 4, NOISE[-4:])
    before = storage.version(f"{bucket}/a/noise.bin")
    assert before == storage.version(f"{bucket}/a/noise.bin")
    storage.put(NOISE[::-1], f"{bucket}/a/noise.bin")
    assert before != storage.version(f"{bucket}/a/noise.bin")
    assert storage.is_file(f"{bucket}/a/noise.bin") and not storage.is_file(f"{bucket}/a")
    storage.delete(f"{bucket}/a/noise.bin")
    storage.delete(f"{bucket}/a b")
    storage.delete(f"{bucket}/a b")
    assert storage.entries(bucket) == []
    with pytest.raises(FileNotFoundError):
        storage.open_file(f"{bucket}/a/noise.bin")


@pytest.mark.slow
@BOTH
def test_trees_are_whole_or_not_marked(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The marker comes last, also where it was there before; a tree is fetched once, and again when it changes."""
    folder = tmp_path / "tree"
    (folder / "inner").mkdir(parents=True)
    for name in ("marker", "b", "inner/c"):
        (folder / name).write_text(name)
    order: list[str] = []
    put = storage.put
    monkeypatch.setattr(objects, "put", lambda content, location: (order.append(location), put(content, location)))
    for _ in range(2):
        storage.put_tree(folder, bucket, "marker")
        assert order.pop() == f"{bucket}/marker" and f"{bucket}/marker" not in order
        order.clear()
    copy = storage.fetch_tree(bucket)
    assert {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()} == {"marker", "b", "inner/c"}
    assert (copy / "inner" / "c").read_text() == "inner/c"
    assert storage.local_copy(bucket) == str(copy) and storage.local_copy(str(folder)) == str(folder)
    put(b"longer now", f"{bucket}/b")
    assert (storage.fetch_tree(bucket) / "b").read_text() == "longer now" and (copy / "b").read_text() == "b"
    assert storage.local_copy(f"{bucket}/b") == str(storage.fetch(f"{bucket}/b"))
    assert storage.fetch(f"{bucket}/b").name == "b"
    (folder / "marker").unlink()
    with pytest.raises(OSError, match="marker"):
        storage.put_tree(folder, bucket, "marker")
    assert not storage.is_file(f"{bucket}/marker")


def _fetch(location: str) -> str:
    return str(storage.fetch(location))


@pytest.mark.slow
def test_processes_of_a_node_fetch_once(
    bucket: str,
    storage_servers: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
):
    """Two processes that want the same object at the same time make the server send it once."""
    storage.put(NOISE, f"{bucket}/noise.bin")
    with proxy_before(storage_servers["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            copies = set(pool.map(_fetch, [f"{bucket}/noise.bin"] * 2))
    assert len(copies) == 1 and Path(copies.pop()).read_bytes() == NOISE
    assert len(NOISE) <= proxy.sent < 1.05 * len(NOISE)


@pytest.mark.slow
def test_a_lost_connection_is_made_again(
    bucket: str,
    storage_servers: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    short_waits: None,
):
    """A read goes on where the connection broke; where the server stays away, the error names the location."""
    storage.put(NOISE, f"{bucket}/noise.bin")
    with proxy_before(storage_servers["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        connection.file_system.cache_clear()
        with storage.open_file(f"{bucket}/noise.bin", buffering=1 << 20) as file:
            begin = file.read(100)
            proxy.left, proxy.comes_back = 1 << 19, True
            assert begin + file.read() == NOISE
            assert proxy.left > len(NOISE), "the connection was never broken"
            proxy.comes_back = False
            file.seek(0)
            proxy.left = 0
            with pytest.raises(UserError, match=rf"{bucket}/noise.bin: storage does not answer; .*start again"):
                file.read()


@pytest.mark.slow
@BOTH
def test_an_object_that_is_replaced_is_never_read_as_half_of_both(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What reads it in parts is told, whatever its size is now; what reads all of it reads it again."""
    location = f"{bucket}/object"
    for after in (NOISE[::-1], NOISE[:100]):
        storage.put(NOISE, location)
        with storage.open_file(location, buffering=0) as file:
            assert file.read(1 << 20) == NOISE[: 1 << 20]
            storage.put(after, location)
            with pytest.raises(UserError, match="object: it changed while it was read"):
                file.read()
    version, newer = objects._version, [b"third", b"the second"]

    def replaced(file: pyarrow.NativeFile) -> str:  # when its content was read
        if newer:
            storage.put(newer.pop(), location)
        return version(file)

    monkeypatch.setattr(objects, "_version", replaced)
    assert storage.read_bytes(location) == b"third"
    newer += [b"fifth", b"the fourth"]
    storage.get_tree(bucket, tmp_path, {"object": 5})
    assert (tmp_path / "object").read_bytes() == b"fifth"


@pytest.mark.slow
def test_a_whole_object_is_read_by_few_requests(
    bucket: str, storage_servers: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    """At once, or as the rest of an open one: the heads of the answers take no more than the hundredth of it."""
    storage.put(NOISE, f"{bucket}/noise.bin")
    with proxy_before(storage_servers["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        connection.file_system.cache_clear()
        assert storage.read_bytes(f"{bucket}/noise.bin") == NOISE
        with storage.open_file(f"{bucket}/noise.bin") as file:
            assert file.read() == NOISE
    assert proxy.sent < 2.02 * len(NOISE)


@pytest.mark.slow
def test_a_copy_that_lost_files_is_made_again(bucket: str):
    """Where a node's disk is cleaned of old files, one by one: what is left would be another model or shard."""
    for name in ("config.json", "inner/vocabulary.txt"):
        storage.put(name.encode(), f"{bucket}/{name}")
    copy = storage.fetch_tree(bucket)
    (copy / "inner" / "vocabulary.txt").unlink()
    (copy / "config.json").write_text("")
    again = storage.fetch_tree(bucket)
    assert {str(path.relative_to(again)): path.read_text() for path in again.rglob("*.*")} == {
        name: name for name in ("config.json", "inner/vocabulary.txt")
    }
    storage.fetch(f"{bucket}/config.json").unlink()
    assert storage.fetch(f"{bucket}/config.json").read_bytes() == b"config.json"


@pytest.mark.slow
@BOTH
def test_what_cannot_be_had_is_told(bucket: str, monkeypatch: pytest.MonkeyPatch, short_waits: None):
    """A missing bucket, a missing object, a full disk: each is named with its cure."""
    scheme = bucket.partition(":")[0]
    for action in (storage.entries, storage.fetch_tree):
        with pytest.raises(UserError, match=f"{scheme}://no-such-bucket/x: there is no such bucket"):
            action(f"{scheme}://no-such-bucket/x")
    with pytest.raises(UserError, match="nothing at this location"):
        storage.fetch_tree(f"{bucket}/none")
    with pytest.raises(UserError, match="there is no such object"):
        storage.fetch(f"{bucket}/none")
    storage.put(b"x", f"{bucket}/x")
    monkeypatch.setattr(node_cache, "SPARE", 1 << 60)
    with pytest.raises(UserError, match=r"GB free; delete old copies there, or let LINGU_RAY_CACHE"):
        storage.fetch(f"{bucket}/x")


@pytest.mark.parametrize(
    ("variable", "value", "location", "told"),
    [
        ("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json", "gs://bucket/x", "access is refused; .* /nowhere.json"),
        ("AWS_ENDPOINT_URL", "ftp://127.0.0.1:9", "s3://bucket/x", "storage does not answer; .* scheme 'ftp'"),
    ],
)
def test_what_the_environment_says_wrongly_is_told(
    monkeypatch: pytest.MonkeyPatch, short_waits: None, variable: str, value: str, location: str, told: str
):
    """Also where pyarrow raises an error of its own kind, none of the system's."""
    for name in ("STORAGE_EMULATOR_HOST", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    connection.file_system.cache_clear()
    with pytest.raises(UserError, match=f"{location}.*: {told}"):
        storage.check_writable(location)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("profile", "config", "credentials"),
    [
        (None, "[default]\nendpoint_url = URL\n", ""),
        (None, "[default]\nendpoint_url = http://127.0.0.1:9\n", "[default]\nendpoint_url = URL\n"),
        ("mine", "[profile mine]\nregion = eu\n", "[default]\n[mine]\nendpoint_url = URL\n"),
        ("mine", "[default]\nendpoint_url = http://127.0.0.1:9\n[profile mine]\nendpoint_url=URL\n", ""),
        (
            "mine",
            "[profile mine]\nservices = local\nendpoint_url = http://127.0.0.1:9\n"
            "[services local]\nec2 =\n  endpoint_url = http://127.0.0.1:9\ns3 =\n  endpoint_url = URL\n",
            "",
        ),
    ],
)
def test_a_server_of_the_configuration_of_aws_is_asked(
    profile: str | None,
    config: str,
    credentials: str,
    storage_servers: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As boto3 reads it, where the environment names none: Amazon's would be another bucket of the same name."""
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    for variable, content in (("AWS_CONFIG_FILE", config), ("AWS_SHARED_CREDENTIALS_FILE", credentials)):
        (tmp_path / variable).write_text(content.replace("URL", storage_servers["AWS_ENDPOINT_URL"]))
        monkeypatch.setenv(variable, str(tmp_path / variable))
    if profile is not None:
        monkeypatch.setenv("AWS_PROFILE", profile)
    connection.file_system.cache_clear()
    location = f"s3://tests/{tmp_path.name}"
    storage.put(b"here", location)
    assert storage.read_bytes(location) == b"here"
    connection.file_system.cache_clear()


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Before anything is fetched, with the variable that names another; so is a user without a home folder."""
    (tmp_path / "file").touch()
    monkeypatch.setenv(storage.CACHE, str(tmp_path / "file" / "cache"))
    for action in (storage.made_cache_folder, lambda: storage.get_tree("s3://bucket/x", tmp_path, {"a": 1})):
        with pytest.raises(UserError, match=r"file/cache, .* cannot be written: .*Let LINGU_RAY_CACHE name another"):
            action()
    monkeypatch.delenv(storage.CACHE)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # of no user that the machine knows
    with pytest.raises(UserError, match=r"no home folder is known here .*: let LINGU_RAY_CACHE name a folder"):
        storage.working_folder("s3://bucket/runs")


@pytest.mark.slow
def test_refused_credentials_are_told_and_not_shown(bucket: str, monkeypatch: pytest.MonkeyPatch):
    """Wrong credentials are an error that says so, without a word of them; right ones work from the next call on."""
    storage.put(b"x", f"{bucket}/x")
    right = "secret-of-tests"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    connection.file_system.cache_clear()
    for action in (storage.read_bytes, storage.entries, storage.delete, lambda place: storage.put(b"y", place)):
        with pytest.raises(UserError, match="access is refused") as told:
            action(f"{bucket}/x")
        assert "wrong-secret" not in str(told.value) and bucket in str(told.value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", right)
    assert storage.read_bytes(f"{bucket}/x") == b"x"


class _Refusing(BaseHTTPRequestHandler):
    """Answers every request as S3 does where it refuses one; a HEAD is told no reason."""

    protocol_version = "HTTP/1.1"
    answer = (200, "")

    def _refuse(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, code = self.answer
        body = b"" if self.command == "HEAD" else f"<Error><Code>{code}</Code><Message>why</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = _refuse

    def log_message(self, *_: object) -> None:
        pass


def test_a_failure_after_another_is_told(monkeypatch: pytest.MonkeyPatch):
    """A bucket that throttled, and then is gone: how often the first is tried says nothing of the second."""
    monkeypatch.setattr(connection, "WAITS_S", (0.0, 0.0))
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    errors = iter([OSError("SlowDown"), OSError("NO_SUCH_BUCKET")])

    def fail(*_: object) -> None:
        raise next(errors)

    with pytest.raises(UserError, match="s3://bucket/x: there is no such bucket"):
        connection.tried("s3://bucket/x", fail)


@pytest.mark.slow  # the client itself asks again
@pytest.mark.parametrize(
    ("status", "code", "told", "of_head"),
    [
        (400, "ExpiredToken", "access is refused", "see that the credentials have not expired"),
        (400, "InvalidToken", "access is refused", "see that the credentials have not expired"),
        (403, "AllAccessDisabled", "access is refused", "access is refused"),
        (403, "RequestTimeTooSkewed", "this machine's clock is wrong", "access is refused"),
        (301, "PermanentRedirect", "correct AWS_REGION", "correct AWS_REGION"),
        (400, "AuthorizationHeaderMalformed", "correct AWS_REGION", "of this region"),
        (507, "XMinioStorageFull", "it has no room left", "it has no room left"),
        (503, "SlowDown", "it takes no more requests for now", "it takes no more requests for now"),
    ],
)
def test_a_refusal_is_told_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, status: int, code: str, told: str, of_head: str
):
    """Credentials that have expired, a wrong clock, region or a full storage are no network that fails."""
    monkeypatch.setattr(connection, "WAITS_S", (0.0,))
    monkeypatch.setattr(_Refusing, "answer", (status, code))
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    connection.file_system.cache_clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        for action, message in [
            (lambda: storage.put(b"x", "s3://bucket/x"), told),
            (lambda: storage.entries("s3://bucket/x"), told),
            (lambda: storage.read_bytes("s3://bucket/x"), of_head),
        ]:
            with pytest.raises(UserError, match=f"s3://bucket/x: .*{message}"):
                action()
        server.shutdown()
    connection.file_system.cache_clear()


@pytest.mark.slow  # the client itself asks again
@pytest.mark.parametrize(("direct", "told"), [("", "it takes no more"), ("storage.invalid", "storage does not")])
def test_a_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch, direct: str, told: str):
    """As by gs:// and other clients of S3: a site may have no other way out; but not for what `no_proxy` names."""
    monkeypatch.setattr(connection, "WAITS_S", (0.0,))
    monkeypatch.setattr(_Refusing, "answer", (503, "SlowDown"))
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://storage.invalid")
    monkeypatch.setenv("no_proxy", direct)
    connection.file_system.cache_clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(UserError, match=f"s3://bucket/x: {told}"):
            storage.entries("s3://bucket/x")
        server.shutdown()
    connection.file_system.cache_clear()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("runs/a", None),
        ("/runs/a", None),
        ("a:b/c", None),
        ("C:/runs", None),
        ("s3://bucket/a?/b", None),
        ("s3://bucket", None),
        ("gs://bucket/a@b", None),
        ("s3a://bucket/a", "s3a:// is not supported; local paths are, s3://bucket/path and gs://bucket/path"),
        ("hdfs://host/a", "hdfs:// is not supported"),
        ("az://c/a", "az:// is not supported"),
        ("http://user:hidden@host/a?token=hidden", "http:// is not supported"),
        ("file:///runs", "without file://"),
        ("s3:/bucket/a", "write s3://bucket/path"),
        ("s3:///a", "write s3://bucket/path"),
        ("s3:/key:hidden@bucket/a", "neither user nor settings"),
        ("s3://key:hidden@bucket/a", "neither user nor settings"),
        ("s3://bucket/a?access_key=hidden&secret_key=hidden", "neither user nor settings"),
    ],
)
def test_locations_are_recognized(path: str, reason: str | None):
    """Local paths and locations pass; anything else is refused by name, and what may be secret is not repeated."""
    told = storage.refusal(path)
    assert (told is None) if reason is None else (told is not None and reason in told and "hidden" not in told)
    local = storage.not_local(path)
    assert (local is None) == (storage.scheme_of(path) is None) and "hidden" not in str(local)
    assert storage.is_remote(path) == path.startswith(("s3://b", "gs://b", "s3:///", "s3://key"))


def test_join_stays_in_the_bucket():
    """Parts are put together as paths are, and `..` does not lead to another bucket."""
    assert storage.join("s3://b/a/", "../c//d", "e") == "s3://b/c/d/e"
    assert storage.join("gs://b", "..", "..", "x") == "gs://b/x"
    assert storage.join("s3://b/a", "..") == storage.join("s3://b") == storage.join("s3://b/") == "s3://b"
