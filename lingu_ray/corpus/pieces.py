"""From a source's path to pieces: parts of files that tasks read independently, always cut in the same way.

A piece yields `(number, record)` pairs, `number` counting from 1 within its file (JSONL, text: the line). What stands
where a record should be but cannot be read is yielded as a `BadRecord`, so that one bad line costs one line.
"""

from __future__ import annotations

import glob
import itertools
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from lingu_ray.config import SourceConfig
from lingu_ray.corpus.formats import IMAGE_SUFFIXES, BadRecord
from lingu_ray.errors import UserError
from lingu_ray.paths import not_found

T = TypeVar("T")
Record = dict[str, Any]
Numbered = tuple[int, Record | BadRecord]

UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    pa.ArrowException,
    tarfile.TarError,
)  # what a damaged file raises
LINES_BYTES = 4 << 20  # of a JSONL or text piece
FILES_PER_PIECE = 512  # of an image folder


@dataclass(frozen=True)
class Piece:
    """Part of a file: bytes (lines, text), row groups (parquet), batches (arrow), or all; `first` records precede it"""

    kind: str
    path: str
    start: int = 0
    stop: int = 0
    first: int = 0
    limit: int | None = None
    files: tuple[str, ...] = ()

    def records(self) -> Iterator[Numbered]:
        """Its records with their numbers."""
        return itertools.islice(READERS[self.kind](self), self.limit)

    def origin(self, number: int) -> str:
        """Where a record came from, for people."""
        return self.files[number - self.first - 1] if self.files else f"{self.path}:{number}"


def cut_source(source: SourceConfig) -> list[Piece]:
    """All pieces of a source that lies in files, in a fixed order, trimmed to `source.limit` records.

    Raises:
        UserError: nothing is found at `source.path`, or a file's kind is not known.
    """
    files = find_files(source)
    if source.format == "image_folder":
        pieces = list(_cut_images(files))
    else:
        pieces = [piece for path in files for piece in _cut_file(source, path)]
    return pieces if source.limit is None else list(_trim(pieces, source.limit))


def image_folder(source: SourceConfig, piece: Piece) -> Path:
    """Where relative paths of a piece's images start: `image_root`, else beside the file of records."""
    return Path(source.image_root or Path(piece.path).parent)


def evenly(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, spread over all, the first and last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def find_files(source: SourceConfig) -> list[str]:
    """Absolute paths of a source's files, sorted.

    Raises:
        UserError: there are none.
    """
    path = Path(source.path)
    if not path.is_absolute():
        found = [Path(p) for p in hub_files(source)]
    elif path.is_dir():
        wanted = IMAGE_SUFFIXES if source.format == "image_folder" else set(CUTTERS)
        folder = _saved_dataset(source, path)
        found = [folder] if folder else [p for p in path.rglob("*") if p.suffix.lower() in wanted and p.is_file()]
    else:
        found = [Path(p) for p in glob.glob(str(path), recursive=True)]
    if not found:
        what = not_found(path) if not path.exists() and not glob.has_magic(source.path) else f"no data at {source.path}"
        raise UserError(f"source {source.name}: {what}; correct its `path`")
    return sorted(str(p.absolute()) for p in found)


def hub_files(source: SourceConfig) -> list[str]:
    """Arrow files of a dataset of the Hugging Face hub, fetched into its cache, which every node must see.

    Raises:
        UserError: it cannot be fetched, or `split` is a slice.
    """
    from datasets import Dataset, load_dataset  # slow to import: only where it is used

    try:
        dataset = load_dataset(source.path, source.subset, split=source.split)
    except (OSError, ValueError) as error:
        raise UserError(
            f"source {source.name}: {not_found(source.path)}, and no dataset {source.path!r} that the hub gives "
            f"(subset {source.subset}, split {source.split}): {error}"
        ) from error
    files = [file["filename"] for file in dataset.cache_files] if isinstance(dataset, Dataset) else []
    if sum(_arrow_rows(path) for path in files) != len(dataset):
        raise UserError(
            f"source {source.name}: `split` must be a whole split, not {source.split!r}; use `limit` for less"
        )
    return files


def _saved_dataset(source: SourceConfig, path: Path) -> Path | None:
    """The folder of the split, if `path` was written by `datasets.save_to_disk`."""
    if (path / "dataset_dict.json").is_file():
        path = path / source.split
        if not path.is_dir():
            splits = json.loads((path.parent / "dataset_dict.json").read_text())["splits"]
            raise UserError(
                f"source {source.name}: {path.parent} has no split {source.split!r}, only {splits}; set `split`"
            )
    return path if (path / "state.json").is_file() else None


def _cut_file(source: SourceConfig, path: str) -> list[Piece]:
    suffix = Path(path).suffix.lower() if Path(path).is_file() else ""
    if suffix not in CUTTERS:
        known = ", ".join(sorted(CUTTERS)[1:])
        raise UserError(
            f"source {source.name}: {path} is of no known kind ({known}, or a folder of datasets.save_to_disk)"
        )
    try:
        return list(CUTTERS[suffix](path))
    except UNREADABLE as error:
        raise UserError(f"source {source.name}: {path} cannot be read: {error}") from error


def _trim(pieces: list[Piece], limit: int) -> Iterator[Piece]:
    for piece in pieces:
        if limit <= 0:
            return
        count = sum(1 for _ in replace(piece, limit=limit).records())
        yield replace(piece, limit=count)
        limit -= count


def _cut_lines(kind: str, path: str) -> Iterator[Piece]:
    start = line = 0
    with open(path, "rb") as file:
        while block := file.read(LINES_BYTES):
            block += file.readline()
            yield Piece(kind, path, start, start + len(block), line)
            start += len(block)
            line += block.count(b"\n")


def _cut_json(path: str) -> Iterator[Piece]:
    """A JSON array of records in one piece; many a `.json` holds JSON lines instead."""
    with open(path, "rb") as file:
        head = file.readline().strip()
    try:
        is_lines = isinstance(json.loads(head), dict)
    except ValueError:
        is_lines = False
    yield from _cut_lines("lines", path) if is_lines else [Piece("json", path)]


def _cut_parquet(path: str) -> Iterator[Piece]:
    metadata = pq.read_metadata(path)
    first = 0
    for group in range(metadata.num_row_groups):
        yield Piece("parquet", path, group, group + 1, first)
        first += metadata.row_group(group).num_rows


def _cut_saved(path: str) -> Iterator[Piece]:
    state = json.loads((Path(path) / "state.json").read_text())
    for file in state["_data_files"]:
        yield from _cut_arrow(str(Path(path) / file["filename"]))


def _cut_arrow(path: str) -> Iterator[Piece]:
    first = 0
    with pa.memory_map(path) as file, pa.ipc.open_stream(file) as batches:
        for index, batch in enumerate(batches):
            yield Piece("arrow", path, index, index + 1, first)
            first += batch.num_rows


def _arrow_rows(path: str) -> int:
    with pa.memory_map(path) as file, pa.ipc.open_stream(file) as batches:
        return sum(batch.num_rows for batch in batches)


def _cut_images(files: list[str]) -> Iterator[Piece]:
    for first in range(0, len(files), FILES_PER_PIECE):
        part = tuple(files[first : first + FILES_PER_PIECE])
        yield Piece("images", str(Path(part[0]).parent), first=first, files=part)


CUTTERS: dict[str, Callable[[str], Iterator[Piece]]] = {
    "": _cut_saved,
    ".jsonl": lambda path: _cut_lines("lines", path),
    ".ndjson": lambda path: _cut_lines("lines", path),
    ".json": _cut_json,
    ".parquet": _cut_parquet,
    ".arrow": _cut_arrow,
    ".txt": lambda path: _cut_lines("text", path),
    ".tar": lambda path: iter([Piece("tar", path)]),
}


def _read_range(piece: Piece) -> bytes:
    with open(piece.path, "rb") as file:
        file.seek(piece.start)
        return file.read(piece.stop - piece.start)


def _read_lines(piece: Piece) -> Iterator[Numbered]:
    for number, line in enumerate(_read_range(piece).split(b"\n"), piece.first + 1):
        if line.strip():
            yield number, _parse(line)


def _parse(line: bytes) -> Record | BadRecord:
    try:
        return _as_record(json.loads(line))
    except ValueError as error:  # bad JSON, bad UTF-8
        return BadRecord("bad_json", f"{error}: {line[:120]!r}")


def _as_record(value: Any) -> Record | BadRecord:
    return value if isinstance(value, dict) else BadRecord("wrong_type", f"a record must be an object: {value!r:.120}")


def _read_json(piece: Piece) -> Iterator[Numbered]:
    try:
        content = json.loads(Path(piece.path).read_bytes())
    except ValueError as error:
        raise ValueError(f"neither a JSON array of records nor JSON lines: {error}") from error
    for number, value in enumerate(content if isinstance(content, list) else [content], 1):
        yield number, _as_record(value)


def _read_text(piece: Piece) -> Iterator[Numbered]:
    try:
        yield piece.first + 1, {"text": _read_range(piece).decode()}
    except UnicodeDecodeError as error:
        yield piece.first + 1, BadRecord("wrong_type", f"not UTF-8 text: {error}")


def _read_parquet(piece: Piece) -> Iterator[Numbered]:
    with pq.ParquetFile(piece.path) as file:
        batches = file.iter_batches(batch_size=64, row_groups=list(range(piece.start, piece.stop)))
        yield from enumerate((record for batch in batches for record in batch.to_pylist()), piece.first + 1)


def _read_arrow(piece: Piece) -> Iterator[Numbered]:
    with pa.memory_map(piece.path) as file, pa.ipc.open_stream(file) as batches:
        part = itertools.islice(batches, piece.start, piece.stop)
        yield from enumerate((record for batch in part for record in batch.to_pylist()), piece.first + 1)


def _read_images(piece: Piece) -> Iterator[Numbered]:
    for number, path in enumerate(piece.files, piece.first + 1):
        label = Path(path).parent.name.replace("-", " ").replace("_", " ")
        yield number, {"image": path, "label": label}


def _read_tar(piece: Piece) -> Iterator[Numbered]:
    """Samples of a WebDataset: neighboring members that share the name up to the first dot of its last part."""
    with tarfile.open(piece.path, "r|*") as tar:
        members = ((*_split_name(member.name), tar.extractfile(member)) for member in tar if member.isfile())
        for number, (_, group) in enumerate(itertools.groupby(members, key=lambda member: member[0]), 1):
            yield number, {suffix: file.read() for _, suffix, file in group if file is not None}


def _split_name(name: str) -> tuple[str, str]:
    folder, _, last = name.rpartition("/")
    key, _, suffix = last.partition(".")
    return f"{folder}/{key}", suffix.lower()


READERS: dict[str, Callable[[Piece], Iterator[Numbered]]] = {
    "lines": _read_lines,
    "json": _read_json,
    "text": _read_text,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "images": _read_images,
    "tar": _read_tar,
}
