"""Paths in settings, made absolute once, when the settings are read.

Workers, trials and jobs run in other working directories than the command, where a relative path means another file;
and two spellings of one path would be two settings. Every path in the settings has one of the types here: what is not
absolute after them is the id of a model or dataset of the Hugging Face hub, or a location in object storage
(`lingu_ray.storage`) where the setting takes one.
"""

from __future__ import annotations

import difflib
import errno
import glob
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, PlainValidator, ValidationInfo, WithJsonSchema

from lingu_ray import storage
from lingu_ray.errors import UserError

_MODEL_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")  # of few old models without an organization; @revision
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_OF_FILES = {
    *(".arrow", ".csv", ".json", ".jsonl", ".ndjson", ".parquet", ".tar", ".tsv", ".txt"),
    *(".bz2", ".gz", ".tgz", ".xz", ".zst", ".zstd"),
}
_OF_DATABASES = {".db", ".sqlite", ".sqlite3"}
_VARIABLE = re.compile(r"\$\{?[A-Za-z_]\w*")
_OF_A_STORE = re.compile("^(sqlite:///|file:(//)?)")
_HOST_AND_PORT = re.compile(r"[\w.-]+:\d+(/.*)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

log = logging.getLogger(__name__)

_start: ContextVar[Path | None] = ContextVar("start", default=None)


@contextmanager
def starting_from(folder: Path) -> Iterator[None]:
    """Relative paths start from `folder`, the working directory of the command whose settings are read here."""
    token = _start.set(folder)
    try:
        yield
    finally:
        _start.reset(token)


class NoPath(UserError, ValueError):
    """A path with a scheme that its setting does not take."""


def absolute(path: str | Path) -> Path:
    """The path from the file system's root: `~` is the home folder, a relative one starts here. Links are kept.

    Raises:
        NoPath: it begins with a scheme, is empty, or nothing can be called so.
    """
    if why := storage.not_local(str(path)):
        raise NoPath(why)
    if not str(path).strip():
        raise NoPath("the path is empty; `.` is the folder that the command is run in")
    found = Path(os.path.abspath(_here() / os.path.expanduser(path)))
    _require_possible(found)
    return found


def _require_possible(path: Path) -> None:
    """Raise NoPath for a name that is too long for a file, of several lines that none here has, or no text at all."""
    try:
        str(path).encode()
        os.lstat(path)
    except UnicodeEncodeError as error:
        raise NoPath(
            f"{str(path)!a} is no UTF-8, as JSON and YAML want it: rename it, or set LC_ALL=C.UTF-8, where its "
            "name is and the locale alone is not"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: of NUL
        if _CONTROL.search(str(path)):
            raise NoPath(f"{str(path)!r}: a line break, or another control character, stands in the path") from error
        if getattr(error, "errno", None) == errno.ENAMETOOLONG:
            raise NoPath(f"{str(path)[:80]}…: no file or folder can have so long a name") from error


def _here() -> Path:
    return _start.get() or Path.cwd()


def location(path: str) -> str | None:
    """A location in object storage, in its one spelling; None for anything else.

    Raises:
        NoPath: it has a scheme that is not supported, or credentials in it.
    """
    if why := storage.refusal(path):
        raise NoPath(why)
    return storage.join(path) if storage.is_remote(path) else None


def is_on_hub(path: str) -> bool:
    """Whether a path of the settings, which has been read, is a hub id: neither on this machine nor in a bucket."""
    return not (Path(path).is_absolute() or storage.scheme_of(path) in storage.SCHEMES)


def model_path(path: str) -> str:
    """A folder or `.gguf` file made absolute, or a location; a hub model's id unchanged if nothing here has its name.

    The id may have a revision after it: `org/name@v1`.

    Raises:
        NoPath: as `location`; it is a file, such as one with a model's weights.
    """
    if place := location(path):
        return place
    if Path(path).suffix == ".gguf":
        folder, name = os.path.split(path)
        return os.path.join(model_path(folder), name) if folder else str(absolute(path))
    if os.path.isfile(absolute(path)):
        raise NoPath(f"{absolute(path)} is a file, and a model is a folder, a hub id or a .gguf file: give its folder")
    return path if _on_hub(path, _MODEL_ID) else str(absolute(path))


def hub_model(path: str, revision: str | None = None) -> tuple[str, str | None] | None:
    """A hub model's id and its revision, after the id or beside it; None for a path that is none of a hub model."""
    if not _on_hub(path, _MODEL_ID):
        return None
    name, _, after = path.partition("@")
    return name, after or revision


def at_revision(path: str, revision: str | None) -> str:
    """A hub model's path with its revision, where it has one: `org/name@v1`, or `org/name@v1/file.gguf`."""
    if revision is None:
        return path
    place, origin = model_origin(path)
    return "/".join([f"{place}@{revision}", *origin.values()])


def model_origin(path: str | Path) -> tuple[str, dict[str, str]]:
    """A model's path as arguments of `from_pretrained`: a GGUF file is named beside its folder or hub id."""
    place = Path(path)
    if place.suffix != ".gguf":
        return str(path), {}
    folder = storage.parent(str(path)) if storage.is_remote(path) else str(place.parent)
    return folder, {"gguf_file": place.name}


def data_path(path: str) -> str:
    """A file, folder or glob, made absolute or a location; a hub dataset's id unchanged if nothing here has its name.

    Raises:
        NoPath: as `location`.
    """
    if place := location(path):
        return place
    written = os.path.expanduser(path)
    if glob.has_magic(written) and not absolute(written).exists() and not os.path.isabs(written):
        return os.path.abspath(os.path.join(glob.escape(str(_here())), written))
    is_id = Path(path).suffix.lower() not in _OF_FILES and _on_hub(path, _HUB_ID)
    return path if is_id else str(absolute(path))


def is_hub_id(name: str) -> bool:
    """Whether it reads `organization/name` and does not exist here."""
    return _on_hub(name, _HUB_ID)


def _on_hub(path: str, pattern: re.Pattern[str]) -> bool:
    return bool(pattern.fullmatch(path)) and not path.startswith(".") and not absolute(path).exists()


def task_path(path: str, info: ValidationInfo) -> str:
    """As `data_path`; the name of a task of lm-evaluation-harness is unchanged, even where such a file exists."""
    return path if info.data.get("type") == "lm_eval" and not path.endswith((".yaml", ".yml")) else data_path(path)


def output_folder(path: object) -> Path | str:
    """A folder that results go to, made absolute, or a location (errors as `location`, and for what is no path)."""
    if not isinstance(path, str | Path):
        raise NoPath("give a folder, or a location in a bucket: s3://bucket/runs")
    return location(str(path)) or absolute(path)


def data_folder(path: str) -> str:
    """A folder made absolute, or a location (errors as `location`)."""
    return location(path) or str(absolute(path))


def tracking_uri(uri: str) -> str:
    """An MLflow store; one on disk by its absolute path.

    Raises:
        NoPath: it is in a bucket; a server or a database is named without what its address begins with.
    """
    if storage.scheme_of(uri) in storage.SCHEMES:
        raise NoPath(f"{storage.redacted(uri)}: MLflow keeps runs on a server or in a database, not in a bucket")
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{absolute(uri.removeprefix('sqlite:///'))}"
    if uri.startswith("file:"):
        return f"file://{absolute(uri.removeprefix('file:').removeprefix('//'))}"
    if _HOST_AND_PORT.fullmatch(uri):
        raise NoPath(f"{uri}: a server's address begins with http:// or https://: http://{uri}")
    if ":" in uri or uri == "databricks":
        return uri
    if Path(uri).suffix in _OF_DATABASES or absolute(uri).is_file():
        raise NoPath(f"{uri}: a database is named with its kind: sqlite:///{absolute(uri)}")
    return str(absolute(uri))


def nearest(path: str | Path) -> Path | None:
    """The path that was probably meant by one that does not exist: its first missing part, spelled as a neighbor is."""
    missing = wanted = absolute(path)
    while not missing.parent.exists():
        missing = missing.parent
    if not missing.parent.is_dir():
        return None
    others = [name for name in os.listdir(missing.parent) if name != missing.name]  # itself may be a link to nothing
    close = difflib.get_close_matches(missing.name, others, n=9)
    stem = missing.name.partition(".")[0]  # names of one ending are alike by that alone
    found = next((name for name in close if difflib.get_close_matches(stem, [name.partition(".")[0]])), None)
    if found is None:
        return None
    near = missing.parent / found
    return meant if (meant := near / wanted.relative_to(missing)).exists() else near


def not_found(path: str | Path, kind: str = "file or folder") -> str:
    """The message that a local path does not exist, with the path that was probably meant, or is of another kind."""
    if absolute(path).exists():
        return f"{absolute(path)} is no {kind}"
    near = nearest(path)
    return f"no such {kind}: {absolute(path)}" + (f"; did you mean {near}?" if near else "")


def ask_hub(who: str, path: str) -> None:
    """Log, before the hub is asked, which may take minutes: who asks, for what, and what else may be meant."""
    from lingu_ray.hub import reach  # slow to import: only where it is used

    near = nearest(path)
    log.info("%s: asking the Hugging Face hub for %s%s", who, path, f"; or did you mean {near}?" if near else "")
    reach()


def why_not_loaded(path: str | Path, error: Exception) -> str:
    """The message on a model (from `model_path`) that does not load: no such folder, no such id, or the error."""
    place = Path(storage.local_copy(path))
    if place.is_dir() and not any(place.glob("config.json")) and not any(place.glob("*.gguf")):
        near = " or ".join(str(inner.parent) for inner in sorted(place.glob("*/config.json")))
        if not near and (place / "config.yaml").exists() and (place / "checkpoints").is_dir():
            return f"{path} is a run without an export; `lingu-ray export` makes a model of a checkpoint that it has"
        return f"{path}: there is no config.json in it" + (f"; did you mean {near}?" if near else "")
    if place.exists():
        return f"{path}: {error}"
    if place.is_absolute():
        return not_found(path)
    from lingu_ray.hub import why_not_had

    return f"{not_found(path)}; and no model {path} can be loaded from the Hugging Face hub: {why_not_had(error)}"


def _written_out(path: object) -> object:
    """Refuses what shells replace and none has: a variable, or a home that is not known here, would be a folder's name.

    What has such a name is meant by it.
    """
    text = _OF_A_STORE.sub("", str(path))
    found, expanded = _VARIABLE.search(text), os.path.expanduser(text)
    if not (found or expanded.startswith("~")) or storage.scheme_of(text) not in (None, *storage.SCHEMES):
        return path
    if os.path.exists(_here() / expanded):
        return path
    if found:
        raise NoPath(
            f"{text}: variables such as {found[0]} are read by shells alone: write the path out, or give it on the "
            "command line, without single quotes"
        )
    raise NoPath(f"{text}: no home folder {text.partition('/')[0]} is known here: write the path out")


_WRITTEN_OUT = BeforeValidator(_written_out)
LocalPath = Annotated[Path, AfterValidator(absolute), _WRITTEN_OUT]
OutputFolder = Annotated[Path | str, PlainValidator(output_folder), WithJsonSchema({"type": "string"}), _WRITTEN_OUT]
DataFolder = Annotated[str, AfterValidator(data_folder), _WRITTEN_OUT]
ModelPath = Annotated[str, AfterValidator(model_path), _WRITTEN_OUT]
DataPath = Annotated[str, AfterValidator(data_path), _WRITTEN_OUT]
TaskPath = Annotated[str, AfterValidator(task_path), _WRITTEN_OUT]
TrackingUri = Annotated[str, AfterValidator(tracking_uri), _WRITTEN_OUT]
