"""Copies on a node: of objects, fetched once, under a lock, and again when they change; of revisions of hub models."""

from __future__ import annotations

import os
import posixpath
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lingu_ray.atomic import locked, whole_folder, why_unwritable
from lingu_ray.content import fingerprint
from lingu_ray.errors import UserError
from lingu_ray.storage.connection import Replaced
from lingu_ray.storage.locations import SCHEMES, join, parent, scheme_of, with_slashes
from lingu_ray.storage.objects import AT_ONCE, BUFFER, check_writable, entries, is_file, open_file, version

CACHE = "LINGU_RAY_CACHE"
"""Environment variable: the folder on each node where copies are kept; without it ~/.cache/lingu_ray."""

SPARE = 1 << 30  # bytes that a disk keeps free
_TRIES = 5  # to copy what others write again and again

_OF_A_REVISION = re.compile(r"(?P<id>[\w.-]+(/[\w.-]+)?)@(?P<revision>[\w./-]+?)(/(?P<file>[^/]+\.gguf))?")
_NOT_LOADED = (".bin", ".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data", ".pt", ".pth")


def cache_folder() -> Path:
    """The folder of this node's copies; whoever needs the disk may delete it. Raises UserError where none is known."""
    try:
        return Path(os.environ.get(CACHE) or "~/.cache/lingu_ray").expanduser()
    except RuntimeError as error:
        raise UserError(f"no home folder is known here ({error}): let {CACHE} name a folder on each node") from error


def made_cache_folder() -> Path:
    """The same, made where there is none. Raises UserError where it cannot be written."""
    folder = cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_writable(folder)
    except OSError as error:
        raise UserError(
            f"{folder}, for copies of what is in buckets, cannot be written: {why_unwritable(folder, error)}. Let "
            f"{CACHE} name another folder on each node"
        ) from error
    return folder


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
    """A local path or a hub id as it is; of a location the node's copy, of the object or of all that is below.

    Of a hub model with a revision, `org/name@v1`, the folder in the node's cache of the hub.

    Raises:
        UserError: storage fails; the hub has no such revision, and neither has the cache.
    """
    if (hub := _OF_A_REVISION.fullmatch(str(path))) and not Path(path).exists():
        return _snapshot(**hub.groupdict())
    if scheme_of(str(path)) not in SCHEMES:
        return str(path)
    location = with_slashes(str(path))  # a `Path` has one slash
    return str(fetch(location) if is_file(location) else fetch_tree(location))


def _snapshot(id: str, revision: str, file: str | None) -> str:
    """The folder of a hub model's revision, or a GGUF `file` in it; weights in other formats are not fetched."""
    from huggingface_hub import snapshot_download  # slow to import: only where it is used

    from lingu_ray.hub import HUB_ERRORS, why_not_had

    unread = [f"*{suffix}" for suffix in _NOT_LOADED if suffix != ".gguf" or file is None]
    try:
        folder = Path(snapshot_download(id, revision=revision, allow_patterns=file, ignore_patterns=unread))
    except HUB_ERRORS as error:
        why = why_not_had(error)
        raise UserError(f"{id}: revision {revision} cannot be had of the Hugging Face hub: {why}") from error
    return str(folder / file if file else folder)


def get_tree(location: str, folder: Path, sizes: Mapping[str, int]) -> None:
    """Copy objects below a location into a local folder, by name; `sizes` in bytes (errors as `fetch`)."""
    _check_space(made_cache_folder(), location, sum(sizes.values()))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda name: _download(location, folder, name), sizes))


def _cached(location: str, wanted: dict[str, str]) -> Path:
    """The folder that holds a copy of objects below a location, which are given by name with their versions.

    Processes of a node that want the same wait for one of them. A copy of which a file is gone, as where a disk is
    cleaned of old ones, is made again.
    """
    root = cache_folder()
    folder = root / fingerprint([location, wanted])
    if _holds(folder, wanted):
        return folder
    made_cache_folder()
    with locked(folder.with_suffix(".lock")):
        if not _holds(folder, wanted):
            _check_space(root, location, sum(map(_size, wanted.values())))
            with whole_folder(folder) as copy, ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(lambda name: _download(location, copy, name, wanted[name]), wanted))
    return folder


def _holds(folder: Path, wanted: dict[str, str]) -> bool:
    try:
        return all((folder / name).stat().st_size == _size(version) for name, version in wanted.items())
    except FileNotFoundError:
        return False


def _download(above: str, folder: Path, name: str, wanted: str | None = None) -> None:
    """Copy an object, of one version: the one that is wanted, or any, as of a file that grows meanwhile."""
    location, target = join(above, name), folder / name
    if not target.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{location}: its name leads out of the folder that it is fetched into")
    target.parent.mkdir(parents=True, exist_ok=True)
    _copy(location, target, tries=_TRIES if wanted is None else 1)
    if wanted is not None and version(location) != wanted:
        raise UserError(f"{location}: it changed while it was fetched; start again")


def _copy(location: str, target: Path, tries: int) -> None:
    try:
        with open_file(location, buffering=0) as source, open(target, "wb") as file:
            shutil.copyfileobj(source, file, BUFFER)
    except Replaced:
        if tries == 1:
            raise
        _copy(location, target, tries - 1)


def _size(version: str) -> int:
    return int(version.partition(" ")[0])


def _check_space(folder: Path, location: str, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size + SPARE:
        raise UserError(
            f"{location}: its copy needs {size / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free; "
            f"delete old copies there, or let {CACHE} name a folder on a larger disk of each node"
        )
