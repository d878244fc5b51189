"""Files and folders that are whole or not there: written under a temporary name beside the final one, then renamed.

Data reach the disk before the rename, so neither a killed process nor a power failure leaves half a file under its
name. Temporary names are hidden and each writer has its own: of two writers at a time one wins, whole. What a killed
writer leaves is removed by the next writer of the same path on the same machine, unless that has restarted: another
machine may have its name.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from lingu_ray.errors import UserError
from lingu_ray.waiting import waiting


def _process_namespace() -> str:
    """What process ids are told apart in: containers may share a host's name; empty where the system has none."""
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def numbering() -> str:
    """What numbers processes: a machine's boot, for machines may share a host's name and restart, and its namespace."""
    with suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text(encoding='utf-8').strip()} {_process_namespace()}"
    return _process_namespace()


_HERE = f"{socket.gethostname()}-{hashlib.blake2s(numbering().encode(), digest_size=8).hexdigest()}"
_WRITER = re.compile(rf"\.{re.escape(_HERE)}-(\d+)-[0-9a-f]+\.tmp")
"""End of a temporary name of this boot of the machine or container: `.HOST-NUMBERING-PROCESS-RANDOM.tmp`."""


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all; one that exists is replaced."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON file, whole or not at all; one that exists is replaced."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path, *keys: str, cure: str = "put it back from a copy, or remove it") -> dict[str, Any]:
    """The object in a JSON file, which has at least these keys.

    Raises:
        UserError: it holds none, as one that was cut off by a copy or a full disk, or one without a key; `cure` says
            what helps.
        OSError: it cannot be read.
    """
    return parse_object(path.read_bytes(), path, *keys, cure=cure)


def parse_object(content: bytes, path: Path | str, *keys: str, cure: str) -> dict[str, Any]:
    """The object in the content of a JSON file, or object of a bucket (arguments and errors as `read_json`)."""
    try:
        found = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is cut off, or no JSON ({error}): {cure}") from error
    if not isinstance(found, dict) or (missing := [key for key in keys if key not in found]):
        lacks = f"has no {missing[0]}" if isinstance(found, dict) else "holds no object"
        raise UserError(f"{path} {lacks}, so it is another file than was written there: {cure}")
    return found


def check_records(folder: Path, names: str = "*.json") -> None:
    """Raise UserError where a JSON file of a folder was cut off, before what is read of it after expensive work."""
    for path in sorted(folder.glob(names)):
        read_json(path)


def require_new_folder(folder: Path) -> None:
    """Raise UserError where a command was told to write a folder that has something in it, or none can be made.

    Nothing takes the place of a mount point, nor of the working directory without shells there losing sight of it.
    """
    if folder.exists() and not (folder.is_dir() and next(folder.iterdir(), None) is None):
        raise UserError(f"{folder} exists; name another folder, or delete it")
    if folder.exists() and (os.path.ismount(folder) or folder.samefile(os.curdir)):
        what = "mounted there" if os.path.ismount(folder) else "run in it"
        raise UserError(f"{folder} cannot be replaced, since something is {what}: name a folder in it")
    above = next(parent for parent in folder.resolve().parents if parent.exists())
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise UserError(f"{folder} cannot be written: {above} is no folder that may be written to; name another one")


def why_unwritable(folder: Path, error: OSError) -> str:
    """Why nothing can be written in a folder, in words: what is in its place or above it, else what the system says."""
    for one in reversed([folder, *folder.parents]):
        if os.path.islink(one) and not os.path.exists(one):
            return f"{one} is a link to {os.readlink(one)}, which leads nowhere"
        if os.path.isfile(one):
            return f"{one} is a file, and a folder is wanted there"
    return error.strerror or str(error)


def require_writable(file: Path, setting: str) -> None:
    """Raise UserError where a command could not write a page or JSON file in the end. Missing folders are made.

    Args:
        file: the file; one that exists is left as it is. Under another ending it is somebody's, as settings are.
        setting: the setting that it follows from, for the message.
    """
    if file.is_file() and file.suffix not in (".html", ".json"):
        raise UserError(f"{setting}: {file} is there, and not of this command; name another one")
    try:
        if file.is_dir():
            raise UserError(f"{setting}: {file} cannot be written: it is a folder; name another one")
        temporary = _temporary(file)
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        why = why_unwritable(file.parent, error)
        raise UserError(f"{setting}: {file} cannot be written: {why}; name another one") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes; it ends with its holder. The file stays.

    Raises:
        UserError: the file system has no locks, as Lustre's may be mounted.
    """
    with open(path, "w", encoding="utf-8") as file:
        try:
            with waiting(f"the lock {path}", f"another process holds it: `fuser -v {path}`"):
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(
                f"{path} cannot be locked: {error.strerror}. Put its folder on a file system that has locks, "
                "as a local disk is"
            ) from error
        yield


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write; when the block ends without error, it is renamed to `path`.

    Missing parent folders are made, and a file that exists is replaced.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, keep_existing: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; when the block ends without error, it is renamed to `path`.

    Missing parent folders are made.

    Args:
        path: the final folder; a link stays one, and what it names is written.
        keep_existing: whether a folder that is there by then stays, as the equal result of another writer, and the
            new one is dropped. Else it is replaced, in two renames between which there is none.
    """
    path = path.resolve()  # no folder can be renamed to a link
    temporary, replaced = _temporary(path), _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        flush_tree(temporary)
        while not _take_place(temporary, path) and not keep_existing:
            shutil.rmtree(replaced, ignore_errors=True)
            with suppress(FileNotFoundError):  # another writer moved it
                path.rename(replaced)
        flush(path.parent)
    finally:
        for folder in (temporary, replaced):
            shutil.rmtree(folder, ignore_errors=True)


def move(folder: Path, place: Path) -> None:
    """Give a folder another name beside it; what had that name is removed."""
    shutil.rmtree(place, ignore_errors=True)
    folder.rename(place)


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files and folders of `path` whose writers, on this machine, are dead."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        writer = _WRITER.fullmatch(leftover.name, len(path.name) + 1)
        if writer is not None and not is_alive(int(writer[1])):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """A new temporary name beside `path`, in a folder that exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    return path.with_name(f".{path.name}.{_HERE}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _take_place(temporary: Path, path: Path) -> bool:
    """Rename a folder; False where the new name is that of another folder with something in it."""
    try:
        temporary.rename(path)
    except OSError as error:  # asking the file system now would be too late: another writer may have moved the folder
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def flush_tree(folder: Path) -> None:
    """Wait until a folder, and all that is in it, is on the disk."""
    for inner in (*folder.rglob("*"), folder):
        flush(inner)


def flush(path: Path) -> None:
    """Wait until the file or folder is on the disk; some file systems cannot do that for folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError) if path.is_dir() else nullcontext():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
