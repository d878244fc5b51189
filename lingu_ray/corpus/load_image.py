"""Loads the image that a record refers to by bytes, a path, a file's URL, or base64."""

from __future__ import annotations

import base64
import os
import re
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from PIL import Image

from lingu_ray import storage
from lingu_ray.corpus.image_folder import FOREIGN, ImageFolder
from lingu_ray.corpus.images import decode_image
from lingu_ray.corpus.named_file import read_named
from lingu_ray.corpus.record import BadRecord

LONGEST_KEY = 1024  # of an object; a longer text may be base64
EMPTY = "the image is empty; a record without one has null there"
SHOWN = 120  # characters of a reference in a message
_TAKE_ZEROS = (b"\xff\xd8", b"RIFF")  # JPEG and WebP, whose decoders take zeros for gray
_END_OF_JPEG = b"\xff\xd9"
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):", re.IGNORECASE)
_REMOTE = (
    "images are not downloaded during a build, nor taken from archives: "
    "fetch them before, with img2dataset for instance, and give their paths"
)

_ROW = (
    "; a number may be the `index` of the row with the picture, as in VLMEvalKit's tables: write the picture there, "
    "or leave out such rows, which ask a question in another order (of a task by where: '{{image | length > 64}}')"
)


def load_image(reference: Any, folder: ImageFolder) -> bytes:
    """The encoded image of a reference, after a check that it can be decoded: the first of `load_and_decode`."""
    return load_and_decode(reference, folder)[0]


def load_and_decode(reference: Any, folder: ImageFolder) -> tuple[bytes, Image.Image]:
    """The encoded image of a reference, and the decoded one.

    Args:
        reference: bytes; a path, where relative ones start from `folder`; a `file:` or `data:` URL; base64; an object
            with one of these under `bytes`, `path` or `url`.
        folder: where relative paths start, and which files may be read; full locations of its bucket are read, too.

    Raises:
        BadRecord: `missing_image`, `remote_image`, `wrong_type` or `bad_image`.
        UserError: the file system, or storage, fails again and again.
    """
    encoded = read_image(reference, folder)
    try:
        decoded = decode_image(encoded)
    except Exception as error:  # PIL raises many kinds for broken files, struct.error and SyntaxError among them
        raise BadRecord("bad_image", f"{type(error).__name__}: {error}") from error
    if encoded.startswith(_TAKE_ZEROS) and encoded.endswith(bytes(512)) and encoded.rstrip(b"\0")[-2:] != _END_OF_JPEG:
        raise BadRecord("bad_image", "its end is zeros, as of a copy or download that was interrupted: fetch it again")
    return encoded, decoded


def read_image(reference: Any, folder: ImageFolder) -> bytes:
    """The encoded image without the check that the image can be decoded."""
    reference = _inner(reference)
    if isinstance(reference, str):
        encoded = _read(reference, folder)
    elif isinstance(reference, bytes | bytearray | memoryview):
        encoded = bytes(reference)
    else:
        raise BadRecord("wrong_type", f"an image must be bytes, a path or a URL, not {type(reference).__name__}")
    if not encoded:
        raise BadRecord("missing_image", EMPTY)
    return encoded


def image_path(reference: Any, folder: ImageFolder) -> Path | str | None:
    """The file or location of a reference; None if it refers to none that may be read.

    Raises:
        BadRecord: a URL that no file on this machine has.
    """
    try:
        reference = _inner(reference)
    except BadRecord:
        return None
    path = _path(reference, folder.path) if isinstance(reference, str) and not _is_data_url(reference) else None
    return path if isinstance(path, str) or (path and folder.may_name(path)) else None


def _inner(reference: Any) -> Any:
    """The reference inside of an object, as `datasets` and chat APIs write images."""
    if isinstance(reference, os.PathLike):
        return os.fspath(reference)
    if isinstance(reference, dict):
        known = [key for key in ("bytes", "path", "url") if key in reference]
        if reference and not known:
            keys = ", ".join(map(str, reference))
            raise BadRecord("wrong_type", f"an image's object must have bytes, path or url; this one has {keys:.80}")
        reference = next((reference[key] for key in known if reference[key]), None)
    if reference is None or (isinstance(reference, str) and not reference):
        raise BadRecord("missing_image", EMPTY)
    return reference


def _read(reference: str, folder: ImageFolder) -> bytes:
    if _is_data_url(reference):
        return _from_data_url(reference)
    path = _path(reference, folder.path)
    try:
        if isinstance(path, str):
            return storage.read_bytes(path)
        if folder.may_name(path):
            return read_named(path, Path.read_bytes)
        what = FOREIGN
    except (OSError, ValueError) as error:  # not there, not readable, a name that is too long, a null in it
        what = getattr(error, "strerror", None) or str(error)
    if (encoded := _from_base64(reference)) is not None:
        return encoded
    raise BadRecord("missing_image", f"{path!s:.{SHOWN}}: {what}{_ROW if reference.isdecimal() else ''}")


def _path(reference: str, folder: Path | str) -> Path | str:
    """The path or location of a reference; `~` is the home folder.

    Raises:
        BadRecord: it is a URL of another machine, or of something in an archive.
    """
    scheme = _SCHEME.match(reference)
    if scheme and scheme[1].lower() == "file":
        return _of_file_url(reference)
    if storage.is_remote(folder) and not Path(reference).is_absolute():
        bucket = "/".join(str(folder).split("/")[:3])
        if reference.startswith(f"{bucket}/"):
            return storage.join(reference)
        if not scheme and len(reference) <= LONGEST_KEY:
            return storage.join(str(folder), reference)
    if scheme and reference[scheme.end() :].startswith("//"):
        raise BadRecord("remote_image", f"{reference:.{SHOWN}}: {_REMOTE}")
    try:
        return Path(folder) / Path(reference).expanduser()
    except RuntimeError:  # no such user
        return Path(folder) / reference


def _of_file_url(url: str) -> Path:
    """The path of `file:/a`, `file:///a` or `file://localhost/a`, percent-encoded."""
    rest = url[len("file:") :]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise BadRecord(
                "remote_image", f"{url:.{SHOWN}} names the host {host!r:.40}; files are file:///path with three slashes"
            )
        rest = slash + path
    if not rest.startswith("/"):
        raise BadRecord("wrong_type", f"{url:.{SHOWN}} has no absolute path; files are file:///path")
    return Path(unquote(rest))


def _is_data_url(reference: str) -> bool:
    return reference[:5].lower() == "data:"


def _from_data_url(url: str) -> bytes:
    head, comma, payload = url[len("data:") :].partition(",")
    if not comma:
        raise BadRecord("bad_image", f"{url:.{SHOWN}}: a data URL needs a comma before its data")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(payload)
    encoded = _decode_base64(unquote(payload))
    if encoded is None:
        raise BadRecord("bad_image", f"{url:.{SHOWN}}: not base64")
    return encoded


def _from_base64(text: str) -> bytes | None:
    """The image that a text in base64 encodes; None unless PIL recognizes it."""
    encoded = _decode_base64(text)
    try:
        Image.open(BytesIO(encoded or b"")).close()
    except Image.DecompressionBombError:
        return encoded
    except Exception:  # PIL raises many kinds
        return None
    return encoded


def _decode_base64(text: str) -> bytes | None:
    """The bytes of a text in base64, in either alphabet, with or without line breaks and padding; else None."""
    joined = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(joined + "=" * (-len(joined) % 4), validate=True)
    except ValueError:
        return None
