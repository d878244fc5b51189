"""What is done with objects: read whole or by ranges, listed, compared, put, deleted."""

from __future__ import annotations

import io
import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from lingu_ray.errors import UserError
from lingu_ray.storage.connection import CHANGED, tried
from lingu_ray.storage.locations import bucket_and_key, is_remote, join

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

BUFFER = 8 << 20  # bytes of one request, where an object is read from its beginning
AT_ONCE = 8  # objects of a tree on their way at the same time
_CONTENT = ("md5Hash", "crc32c", "ETag")  # metadata that tell the content, best first


@dataclass(frozen=True, order=True)
class Entry:
    """An object below a location. `name`: its path from there; `size` in bytes."""

    name: str
    size: int


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


def read_bytes(location: str, start: int = 0) -> bytes:
    """An object from a byte on, all of one version, by one request (errors as `open_file`)."""

    def ask(fs: FileSystem, path: str) -> bytes:
        with fs.open_input_file(path) as file:
            first = min(start, file.size())
            content = file.read_at(file.size() - first, first)
            _unchanged(fs, path, _version(file))
            return content

    return tried(location, ask)


def is_file(path: str | Path) -> bool:
    """Whether there is such a file or object. Raises UserError where storage cannot be reached, or refuses."""
    return _info(str(path)).is_file if is_remote(path) else Path(path).is_file()


def exists(location: str) -> bool:
    """Whether there is such an object, or one below it (errors as `is_file`)."""
    from pyarrow.fs import FileType

    return _info(location).type != FileType.NotFound


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

    found = tried(location, ask)
    start = len(bucket_and_key(location)) + 1
    return sorted(Entry(info.path[start:], info.size) for info in found if info.is_file)


def version(location: str) -> str:
    """What changes with an object's content, by one request: its size, and checksum or etag (errors as `open_file`)."""

    def ask(fs: FileSystem, path: str) -> str:
        with fs.open_input_file(path) as file:
            return _version(file)

    return tried(location, ask)


def _version(file: Any) -> str:
    """The version of an open object: no file of pyarrow sees that it is replaced."""
    metadata = {key if isinstance(key, str) else key.decode(): value for key, value in file.metadata().items()}
    marks = [metadata[name] for name in _CONTENT if metadata.get(name)]
    return f"{file.size()} {marks[0].decode() if marks else ''}"


def _unchanged(fs: FileSystem, path: str, version: str) -> Any:
    """An object, opened again. Raises OSError where it is another version: what was read may have a part of that."""
    file = fs.open_input_file(path)
    if _version(file) != version:
        raise OSError(CHANGED)
    return file


def put(content: Path | bytes, location: str) -> None:
    """Write an object, whole; one that exists is replaced. Raises UserError where that cannot be done."""
    from pyarrow.fs import LocalFileSystem, copy_files

    def write(fs: FileSystem, path: str) -> None:
        if isinstance(content, bytes):
            with fs.open_output_stream(path, compression=None) as stream:
                stream.write(content)
        else:
            copy_files(str(content), path, LocalFileSystem(), fs, use_threads=False)

    tried(location, write)


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

    tried(location, remove)


def check_writable(place: Path | str) -> None:
    """Write a file in a folder, or an object below a location, and delete it.

    Raises:
        OSError: the folder is not there, or not writable.
        UserError: nothing can be written at the location.
    """
    if isinstance(place, Path):
        with TemporaryFile(dir=place):
            return
    probe = join(place, f".probe-{secrets.token_hex(4)}")
    put(b"", probe)
    delete(probe)


class _Object(io.RawIOBase):
    """An object that is read by ranges, all of one version, and opened again where the connection is lost."""

    def __init__(self, location: str) -> None:
        self._location, self._position = location, 0
        self._file: Any = tried(location, lambda fs, path: fs.open_input_file(path))
        self._size, self._version = self._file.size(), _version(self._file)

    def _read(self, fs: FileSystem, path: str, count: int) -> bytes:
        file = self._file or _unchanged(fs, path, self._version)
        self._file = None  # unless this succeeds
        content = file.read_at(count, self._position)
        if self._position + count == self._size or len(content) < count:
            _unchanged(fs, path, self._version)
        self._file = file
        return content

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._size - self._position))
        content = tried(self._location, lambda fs, path: self._read(fs, path, wanted)) if wanted else b""
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def readall(self) -> bytes:
        """The rest; Python's own asks for 8 KiB at a time."""
        return b"".join(iter(lambda: self.read(BUFFER), b""))

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
    return tried(location, lambda fs, path: fs.get_file_info(path))
