"""Locations as text: which can be used and why others cannot, how they are put together and shown."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import TypeVar, cast

P = TypeVar("P", bound=Path | str)

SCHEMES = ("s3", "gs")

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_QUERY = re.compile(r"\?[\w.-]+=")
_SECRETS = re.compile(r"(?<=://)[^/\s@]*@|\?[\w.-]+=[^\s\]]*")
_SLASHES = re.compile(r"(?<=[A-Za-z0-9+.-]{2}):/+")
_WORKS = " and ".join(f"{scheme}://bucket/path" for scheme in SCHEMES)


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
    return _SECRETS.sub("…", with_slashes(text))


def with_slashes(text: str) -> str:
    """Text with `://` in the URIs in it, of which a `Path` leaves `:/`."""
    return _SLASHES.sub("://", text)


def is_remote(path: str | Path) -> bool:
    """Whether it is a location in object storage, and no local path."""
    return isinstance(path, str) and path.startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def join(location: str, *names: str) -> str:
    """A location further down (`..` goes up, not beyond the bucket), without a slash at its end."""
    scheme, _, path = location.partition("://")
    bucket, *keys = path.split("/")
    key = posixpath.normpath("/" + "/".join((*keys, *names))).strip("/")
    return f"{scheme}://{bucket}/{key}".rstrip("/")


def place(path: str) -> Path | str:
    """A local path as a `Path`, a location as it is."""
    return path if is_remote(path) else Path(path)


def below(path: P, name: str) -> P:
    """A name in a local folder, or below a location; of a `Path` a `Path`, of text text."""
    if isinstance(path, Path):
        return cast(P, path / name)
    return cast(P, join(path, name) if is_remote(path) else os.path.join(path, name))


def parent(path: str) -> str:
    """The folder of a local path, or what is above an object."""
    return join(path, "..") if is_remote(path) else os.path.dirname(path)


def bucket_and_key(location: str) -> str:
    """`bucket/key`, as file systems of pyarrow want it."""
    return location.partition("://")[2].rstrip("/")
