"""Object storage: what is at `s3://bucket/key` and `gs://bucket/key`, by few verbs over `pyarrow.fs`.

A bucket has no folders, no rename and no append. So whoever writes works in a local folder and puts whole objects, with
the one that says "complete" (the marker) last; whoever reads streams an object, or takes a copy from the node's cache,
which is fetched once, under a lock. Local paths stay with `pathlib`; only `open_file` and `is_file` take both.

Results at a location are written in a working folder of the node's cache that stands for it (`working_folder`,
`origin`): `CACHE/driver/@s3/bucket/runs/mine` for `s3://bucket/runs/mine`.

Credentials, region and endpoint come from where each cloud's own tools find them (`AWS_…`, `~/.aws`, roles of machines
and pods; `GOOGLE_APPLICATION_CREDENTIALS`), never from a location. What the network loses is tried again, with a new
connection and fresh credentials; what cannot be had is a `UserError` that names the location and the cure.
"""

from __future__ import annotations

import io
import itertools
import os
import posixpath
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lingu_ray.atomic import locked, whole_folder
from lingu_ray.content import fingerprint
from lingu_ray.errors import UserError

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

T = TypeVar("T")

SCHEMES = ("s3", "gs")
CACHE = "LINGU_RAY_CACHE"
"""Environment variable: the folder on each node where copies are kept; without it ~/.cache/lingu_ray."""

BUFFER = 8 << 20  # bytes of one request, where an object is read from its beginning
AT_ONCE = 8  # objects of a tree on their way at the same time
WAITS_S = (1.0, 2.0, 4.0, 8.0)  # before each further attempt where storage does not answer
TIMEOUT_S = 10  # of a connection or request
SPARE = 1 << 30  # bytes that a disk keeps free

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_QUERY = re.compile(r"\?[\w.-]+=")
_SECRETS = re.compile(r"(?<=://)[^/\s@]*@|\?[\w.-]+=[^\s\]]*")
_SLASHES = re.compile(r"(?<=[A-Za-z0-9+.-]{2}):/+")
_WORKS = " and ".join(f"{scheme}://bucket/path" for scheme in SCHEMES)
_CONTENT = ("md5Hash", "crc32c", "ETag")  # metadata that tell the content, best first


@dataclass(frozen=True, order=True)
class Entry:
    """An object below a location. `name`: its path from there; `size` in bytes; `modified` in ns since 1970."""

    name: str
    size: int
    modified: int


def refusal(path: str) -> str | None:
    """Why text that begins with a scheme is no location that can be used; None for a location, or a local path."""
    scheme = scheme_of(path)
    if scheme is None:
        return None
    shown = redacted(path)
    if scheme == "file":
        return f"{shown}: write the path alone, without file://"
    if scheme not in SCHEMES:
        return f"{shown}: {scheme}:// is not supported; local paths are, {_WORKS}"
    bucket = re.split("/+", path, maxsplit=2)[1]
    if "@" in bucket or _QUERY.search(path):
        return (
            f"{shown}: a location has neither user nor settings in it; credentials, region and endpoint come from the "
            "environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …) or the cloud's own configuration"
        )
    return None if is_remote(path) and bucket and not path.startswith(f"{scheme}:///") else f"{shown}: write {_WORKS}"


def not_local(path: str) -> str | None:
    """Why text is no local path; None where it is one."""
    scheme = scheme_of(path)
    if scheme not in SCHEMES:
        return refusal(path)
    return f"{redacted(path)}: this has to be a local path, {scheme}:// is not supported here"


def scheme_of(path: str) -> str | None:
    """What stands before `://`, or before `:/`, which is left of it in a `Path`."""
    scheme = _SCHEME.match(path)
    return scheme[1] if scheme else None


def redacted(text: str) -> str:
    """Text without user, password, and queries of the URIs in it, where credentials may be."""
    return _SECRETS.sub("…", _SLASHES.sub("://", text))


def is_remote(path: str | Path) -> bool:
    """Whether it is a location in object storage, and no local path."""
    return isinstance(path, str) and path.startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def join(location: str, *names: str) -> str:
    """A location further down (`..` goes up, not beyond the bucket), without a slash at its end."""
    scheme, _, path = location.partition("://")
    bucket, *keys = path.split("/")
    key = posixpath.normpath("/" + "/".join((*keys, *names))).strip("/")
    return f"{scheme}://{bucket}/{key}".rstrip("/")


def open_file(path: str | Path, buffering: int = BUFFER) -> io.BufferedIOBase | io.RawIOBase:
    """Open a file or object for reading, from any position. `buffering` is bytes of a request; 0: just what is asked.

    Raises:
        OSError: a local file cannot be read.
        FileNotFoundError: there is no such object.
        UserError: storage cannot be reached, or refuses.
    """
    if not is_remote(path):
        return open(path, "rb")
    raw = _Object(str(path))
    return io.BufferedReader(raw, buffering) if buffering else raw


def read_bytes(location: str) -> bytes:
    """The whole of an object (errors as `open_file`)."""
    with open_file(location, buffering=0) as file:
        return file.read()


def is_file(path: str | Path) -> bool:
    """Whether there is such a file or object. Raises UserError where storage cannot be reached, or refuses."""
    return _info(str(path)).is_file if is_remote(path) else Path(path).is_file()


def exists(location: str) -> bool:
    """Whether there is such an object, or one below it (errors as `is_file`)."""
    from pyarrow.fs import FileType

    return _info(location).type != FileType.NotFound


def place(path: str) -> Path | str:
    """A local path as a `Path`, a location as it is."""
    return path if is_remote(path) else Path(path)


def below(path: str, name: str) -> str:
    """A name in a local folder, or below a location."""
    return join(path, name) if is_remote(path) else os.path.join(path, name)


def parent(path: str) -> str:
    """The folder of a local path, or what is above an object."""
    return join(path, "..") if is_remote(path) else os.path.dirname(path)


def working_folder(place: Path | str, of: str = "driver") -> Path:
    """The folder on this node in which `of` writes results that go to a place: itself, if it is local."""
    if isinstance(place, Path):
        return place
    scheme, _, path = place.partition("://")
    return Path(os.path.abspath(cache_folder()), of, f"@{scheme}", path)


def origin(path: Path) -> Path | str:
    """The location that a path in a working folder stands for; any other path as it is."""
    for at, part in enumerate(path.parts):
        if part.startswith("@") and part[1:] in SCHEMES:
            return join(f"{part[1:]}://{'/'.join(path.parts[at + 1 :])}")
    return path


def entries(location: str) -> list[Entry]:
    """All objects below a location, sorted by name; none where nothing is there.

    Raises:
        UserError: storage cannot be reached, or refuses; there is no such bucket.
    """
    from pyarrow.fs import FileSelector, FileType

    def ask(fs: FileSystem, path: str) -> list[FileInfo]:
        found = fs.get_file_info(FileSelector(path, allow_not_found=True, recursive=True))
        if not found and fs.get_file_info(path.partition("/")[0]).type == FileType.NotFound:
            raise UserError(f"{location}: there is no such bucket; correct the location")
        return found

    found = _tried(location, ask)
    start = len(_path(location)) + 1
    return sorted(Entry(info.path[start:], info.size, info.mtime_ns or 0) for info in found if info.is_file)


def version(location: str) -> str:
    """What changes with an object's content, by one request: its size, and checksum or etag (errors as `open_file`)."""

    def ask(fs: FileSystem, path: str) -> str:
        with fs.open_input_file(path) as file:
            metadata = {key if isinstance(key, str) else key.decode(): value for key, value in file.metadata().items()}
            marks = [metadata[name] for name in _CONTENT if metadata.get(name)]
            return f"{file.size()} {marks[0].decode() if marks else ''}"

    return _tried(location, ask)


def put(content: Path | bytes, location: str) -> None:
    """Write an object, whole; one that exists is replaced. Raises UserError where that cannot be done."""
    from pyarrow.fs import LocalFileSystem, copy_files

    def write(fs: FileSystem, path: str) -> None:
        if isinstance(content, bytes):
            with fs.open_output_stream(path, compression=None) as stream:
                stream.write(content)
        else:
            copy_files(str(content), path, LocalFileSystem(), fs, use_threads=False)

    _tried(location, write)


def put_tree(folder: Path, location: str, marker: str) -> None:
    """Write a local folder's files below a location, the file `marker` last: where it is, all are, and nothing else.

    A marker that is there is deleted first, then objects that the folder lacks (errors as `put`).
    """
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    there = [entry.name for entry in entries(location)]
    for name in [name for name in there if name == marker] + [name for name in there if name not in names]:
        delete(join(location, name))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda name: put(folder / name, join(location, name)), (n for n in names if n != marker)))
    put(folder / marker, join(location, marker))


def delete(location: str) -> None:
    """Delete an object, or all below it; none there is no error. Raises UserError where that is refused."""
    from pyarrow.fs import FileType

    def remove(fs: FileSystem, path: str) -> None:
        kind = fs.get_file_info(path).type
        if kind == FileType.File:
            fs.delete_file(path)
        elif kind == FileType.Directory:
            with suppress(FileNotFoundError):  # the folder itself, which is none in a bucket
                fs.delete_dir(path)

    _tried(location, remove)


def remove(path: Path) -> None:
    """Delete a local file or folder and, where it is in a working folder, what it stands for; none is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    if isinstance(location := origin(path), str):
        delete(location)


def get_tree(location: str, folder: Path, sizes: Mapping[str, int]) -> None:
    """Copy objects below a location into a local folder, by name; `sizes` in bytes (errors as `fetch`)."""
    _check_space(location, sum(sizes.values()))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda name: _download(join(location, name), folder, name), sizes))


def fetch(location: str) -> Path:
    """This node's copy of an object, under its own name; fetched where there is none of its content yet.

    Raises:
        UserError: there is no such object, storage cannot be reached, or the cache's disk is full.
    """
    name = posixpath.basename(location)
    try:
        wanted = {name: version(location)}
    except FileNotFoundError:
        raise UserError(f"{location}: there is no such object") from None
    return _cached(parent(location), wanted) / name


def fetch_tree(location: str) -> Path:
    """This node's copy of all that is below a location (errors as `fetch`)."""
    names = [entry.name for entry in entries(location)]
    if not names:
        raise UserError(f"{location}: there is nothing at this location")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return _cached(
            location, dict(zip(names, pool.map(lambda name: version(join(location, name)), names), strict=True))
        )


def local_copy(path: str | Path) -> str:
    """A local path or a hub id as it is; of a location the node's copy, of the object or of all that is below."""
    if scheme_of(str(path)) not in SCHEMES:
        return str(path)
    location = _SLASHES.sub("://", str(path))  # a `Path` has one slash
    return str(fetch(location) if is_file(location) else fetch_tree(location))


def check_writable(location: str) -> None:
    """Write an object below a location, and delete it. Raises UserError where that cannot be done."""
    probe = join(location, f".probe-{secrets.token_hex(4)}")
    put(b"", probe)
    delete(probe)


def cache_folder() -> Path:
    """The folder of this node's copies; whoever needs the disk may delete it."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "lingu_ray").expanduser()


def _cached(location: str, wanted: dict[str, str]) -> Path:
    """The folder that holds a copy of objects below a location, which are given by name with their versions.

    Processes of a node that want the same wait for one of them.
    """
    root = cache_folder()
    folder = root / fingerprint([location, wanted])
    if folder.is_dir():
        return folder
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(folder.with_suffix(".lock")):
        if not folder.is_dir():
            _check_space(location, sum(map(_size, wanted.values())))
            with whole_folder(folder, keep_existing=True) as copy, ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(lambda name: _download(join(location, name), copy, name, _size(wanted[name])), wanted))
    return folder


def _download(location: str, folder: Path, name: str, size: int | None = None) -> None:
    target = folder / name
    if not target.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{location}: its name leads out of the folder that it is fetched into")
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_file(location, buffering=0) as source, open(target, "wb") as file:
        shutil.copyfileobj(source, file, BUFFER)
    if size is not None and target.stat().st_size != size:
        raise UserError(f"{location}: it changed while it was fetched; start again")


def _size(version: str) -> int:
    return int(version.partition(" ")[0])


def _check_space(location: str, size: int) -> None:
    cache_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
    free = shutil.disk_usage(cache_folder()).free
    if free < size + SPARE:
        raise UserError(
            f"{location}: its copy needs {size / 1e9:.1f} GB, and {cache_folder()} has {free / 1e9:.1f} GB free; "
            f"delete old copies there, or let {CACHE} name a folder on a larger disk of each node"
        )


class _Object(io.RawIOBase):
    """An object that is read by ranges, and opened again where the connection is lost."""

    def __init__(self, location: str) -> None:
        self._location, self._position, self._file = location, 0, None
        self._size: int = _tried(location, lambda fs, path: self._open(fs, path).size())

    def _open(self, fs: FileSystem, path: str) -> Any:
        self._file = fs.open_input_file(path)
        return self._file

    def _read(self, fs: FileSystem, path: str, count: int) -> bytes:
        file = self._file or self._open(fs, path)
        self._file = None  # unless this succeeds
        if file.size() != self._size:
            raise UserError(f"{self._location}: it changed while it was read; start again")
        content = file.read_at(count, self._position)
        self._file = file
        return content

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._size - self._position))
        content = _tried(self._location, lambda fs, path: self._read(fs, path, wanted)) if wanted else b""
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _info(location: str) -> FileInfo:
    return _tried(location, lambda fs, path: fs.get_file_info(path))


def _path(location: str) -> str:
    """`bucket/key`, as file systems of pyarrow want it."""
    return location.partition("://")[2].rstrip("/")


@dataclass(frozen=True)
class _Failure:
    """What errors that hold one of the `signs` mean, and the seconds before each further attempt."""

    signs: tuple[str, ...]
    waits: tuple[float, ...]
    message: str


def _failure(error: str) -> _Failure:
    kinds = (
        _Failure(("NO_SUCH_BUCKET", "Bucket '"), (), "there is no such bucket; correct the location"),
        _Failure(
            (
                *("ACCESS_DENIED", "EXPIRED", "SIGNATURE", "ACCESS_KEY_ID", "UNAUTHENTICATED", "PERMISSION_DENIED"),
                "OAuth2",
            ),
            (0.0,),  # once more, with credentials read again
            "access is refused; give every node credentials that may use it, by the environment or the cloud's roles",
        ),
        _Failure(("",), WAITS_S, "storage does not answer; check network and endpoint, then start again"),
    )
    return next(kind for kind in kinds if any(sign in error for sign in kind.signs))


def _tried(location: str, action: Callable[[FileSystem, str], T]) -> T:
    """The result of an action on a location, tried again with a new file system where it fails."""
    path = _path(location)
    for attempt in itertools.count():
        try:
            return action(_file_system(location.partition("://")[0], path.partition("/")[0]), path)
        except FileNotFoundError:
            raise
        except OSError as error:
            _file_system.cache_clear()
            failure = _failure(str(error))
            if attempt == len(failure.waits):
                raise UserError(f"{location}: {failure.message} ({redacted(str(error))})") from error
            time.sleep(failure.waits[attempt])
    raise AssertionError("unreachable")


@lru_cache
def _file_system(scheme: str, bucket: str) -> FileSystem:
    from pyarrow.fs import AwsStandardS3RetryStrategy, GcsFileSystem, S3FileSystem, resolve_s3_region

    if scheme == "gs":
        emulator = os.environ.get("STORAGE_EMULATOR_HOST")
        options = _endpoint(emulator) | {"anonymous": True} if emulator else {}
        return GcsFileSystem(retry_time_limit=timedelta(seconds=TIMEOUT_S), **options)
    options = _endpoint(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))
    if not (options or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")):
        options = {"region": resolve_s3_region(bucket)}
    retries = AwsStandardS3RetryStrategy(max_attempts=2)
    return S3FileSystem(request_timeout=TIMEOUT_S, connect_timeout=TIMEOUT_S, retry_strategy=retries, **options)


def _endpoint(url: str | None) -> dict[str, Any]:
    """The address of a server of one's own, as arguments of a file system."""
    if not url:
        return {}
    scheme, _, host = url.rpartition("://")
    return {"scheme": scheme or "https", "endpoint_override": host.rstrip("/")}
