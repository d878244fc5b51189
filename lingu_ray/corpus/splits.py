"""File splits of a source: parts of its files that tasks read independently, the same ones on every machine.

A file split yields `(number, record)` pairs; `number` counts from 1 within the file (JSONL, text: the line). A record
that cannot be read is yielded as a `BadRecord`, so that a bad line costs one line. Not to be confused with a split of
a hub dataset (train, test), which is the source's setting `split`.
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
from lingu_ray.corpus.formats import IMAGE_SUFFIXES, BadRecord, Record
from lingu_ray.errors import UserError
from lingu_ray.paths import not_found

T = TypeVar("T")
Numbered = tuple[int, Record | BadRecord]

UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    pa.ArrowException,
    tarfile.TarError,
)  # what a damaged file raises
LINES_BYTES = 4 << 20  # of a JSONL or text split
FILES_PER_SPLIT = 512  # of an image folder


@dataclass(frozen=True)
class FileSplit:
    """Part of a file: bytes (lines, text), row groups (parquet), batches (arrow), or all.

    `first`: records of the file before it. `limit`: at most so many of its records are read; None: all.
    """

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
        """Where a record comes from, human-readable."""
        return self.files[number - self.first - 1] if self.files else f"{self.path}:{number}"


def split_source(source: SourceConfig) -> list[FileSplit]:
    """Split a source into file splits, in a fixed order, trimmed to `source.limit` records.

    Raises:
        UserError: nothing is found at `source.path`, or a file's kind is not known.
    """
    files = find_files(source)
    if source.format == "image_folder":
        splits = list(_split_images(files))
    else:
        splits = [split for path in files for split in _split_file(source, path)]
    return splits if source.limit is None else list(_trim(splits, source.limit))


def image_folder(source: SourceConfig, split: FileSplit) -> Path:
    """Where relative paths of a split's images start: `image_root`, else beside the file of records."""
    return Path(source.image_root or Path(split.path).parent)


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
        wanted = IMAGE_SUFFIXES if source.format == "image_folder" else set(SPLITTERS)
        folder = _saved_dataset(source, path)
        found = [folder] if folder else [p for p in path.rglob("*") if p.suffix.lower() in wanted and p.is_file()]
    else:
        found = [Path(p) for p in glob.glob(str(path), recursive=True)]
    if not found:
        what = not_found(path) if not path.exists() and not glob.has_magic(source.path) else f"no data at {source.path}"
        raise UserError(f"source {source.name}: {what}; correct its `path`")
    return sorted(str(p.absolute()) for p in found)


def hub_files(source: SourceConfig) -> list[str]:
    """Fetch a dataset of the Hugging Face hub and return its Arrow files; every node must see the cache.

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
    """The folder of the source's split, if `path` was written by `datasets.save_to_disk`."""
    if (path / "dataset_dict.json").is_file():
        path = path / source.split
        if not path.is_dir():
            splits = json.loads((path.parent / "dataset_dict.json").read_text())["splits"]
            raise UserError(
                f"source {source.name}: {path.parent} has no split {source.split!r}, only {splits}; set `split`"
            )
    return path if (path / "state.json").is_file() else None


def _split_file(source: SourceConfig, path: str) -> list[FileSplit]:
    suffix = Path(path).suffix.lower() if Path(path).is_file() else ""
    if suffix not in SPLITTERS:
        known = ", ".join(sorted(SPLITTERS)[1:])
        raise UserError(
            f"source {source.name}: {path} is of no known kind ({known}, or a folder of datasets.save_to_disk)"
        )
    try:
        return list(SPLITTERS[suffix](path))
    except UNREADABLE as error:
        raise UserError(f"source {source.name}: {path} cannot be read: {error}") from error


def _trim(splits: list[FileSplit], limit: int) -> Iterator[FileSplit]:
    for split in splits:
        if limit <= 0:
            return
        count = sum(1 for _ in replace(split, limit=limit).records())
        yield replace(split, limit=count)
        limit -= count


def _split_lines(kind: str, path: str) -> Iterator[FileSplit]:
    start = line = 0
    with open(path, "rb") as file:
        while block := file.read(LINES_BYTES):
            block += file.readline()
            yield FileSplit(kind, path, start, start + len(block), line)
            start += len(block)
            line += block.count(b"\n")


def _split_json(path: str) -> Iterator[FileSplit]:
    """A JSON array of records in one split; many a `.json` holds JSON lines instead."""
    with open(path, "rb") as file:
        head = file.readline().strip()
    try:
        is_lines = isinstance(json.loads(head), dict)
    except ValueError:
        is_lines = False
    yield from _split_lines("lines", path) if is_lines else [FileSplit("json", path)]


def _split_parquet(path: str) -> Iterator[FileSplit]:
    metadata = pq.read_metadata(path)
    first = 0
    for group in range(metadata.num_row_groups):
        yield FileSplit("parquet", path, group, group + 1, first)
        first += metadata.row_group(group).num_rows


def _split_saved(path: str) -> Iterator[FileSplit]:
    state = json.loads((Path(path) / "state.json").read_text())
    for file in state["_data_files"]:
        yield from _split_arrow(str(Path(path) / file["filename"]))


def _split_arrow(path: str) -> Iterator[FileSplit]:
    first = 0
    with pa.memory_map(path) as file, pa.ipc.open_stream(file) as batches:
        for index, batch in enumerate(batches):
            yield FileSplit("arrow", path, index, index + 1, first)
            first += batch.num_rows


def _arrow_rows(path: str) -> int:
    with pa.memory_map(path) as file, pa.ipc.open_stream(file) as batches:
        return sum(batch.num_rows for batch in batches)


def _split_images(files: list[str]) -> Iterator[FileSplit]:
    for first in range(0, len(files), FILES_PER_SPLIT):
        part = tuple(files[first : first + FILES_PER_SPLIT])
        yield FileSplit("images", str(Path(part[0]).parent), first=first, files=part)


SPLITTERS: dict[str, Callable[[str], Iterator[FileSplit]]] = {
    "": _split_saved,
    ".jsonl": lambda path: _split_lines("lines", path),
    ".ndjson": lambda path: _split_lines("lines", path),
    ".json": _split_json,
    ".parquet": _split_parquet,
    ".arrow": _split_arrow,
    ".txt": lambda path: _split_lines("text", path),
    ".tar": lambda path: iter([FileSplit("tar", path)]),
}


def _read_range(split: FileSplit) -> bytes:
    with open(split.path, "rb") as file:
        file.seek(split.start)
        return file.read(split.stop - split.start)


def _read_lines(split: FileSplit) -> Iterator[Numbered]:
    for number, line in enumerate(_read_range(split).split(b"\n"), split.first + 1):
        if line.strip():
            yield number, _parse(line)


def _parse(line: bytes) -> Record | BadRecord:
    try:
        return _as_record(json.loads(line))
    except ValueError as error:  # bad JSON, bad UTF-8
        return BadRecord("bad_json", f"{error}: {line[:120]!r}")


def _as_record(value: Any) -> Record | BadRecord:
    return value if isinstance(value, dict) else BadRecord("wrong_type", f"a record must be an object: {value!r:.120}")


def _read_json(split: FileSplit) -> Iterator[Numbered]:
    try:
        content = json.loads(Path(split.path).read_bytes())
    except ValueError as error:
        raise ValueError(f"neither a JSON array of records nor JSON lines: {error}") from error
    for number, value in enumerate(content if isinstance(content, list) else [content], 1):
        yield number, _as_record(value)


def _read_text(split: FileSplit) -> Iterator[Numbered]:
    try:
        yield split.first + 1, {"text": _read_range(split).decode()}
    except UnicodeDecodeError as error:
        yield split.first + 1, BadRecord("wrong_type", f"not UTF-8 text: {error}")


def _read_parquet(split: FileSplit) -> Iterator[Numbered]:
    with pq.ParquetFile(split.path) as file:
        batches = file.iter_batches(batch_size=64, row_groups=list(range(split.start, split.stop)))
        yield from enumerate((record for batch in batches for record in batch.to_pylist()), split.first + 1)


def _read_arrow(split: FileSplit) -> Iterator[Numbered]:
    with pa.memory_map(split.path) as file, pa.ipc.open_stream(file) as batches:
        part = itertools.islice(batches, split.start, split.stop)
        yield from enumerate((record for batch in part for record in batch.to_pylist()), split.first + 1)


def _read_images(split: FileSplit) -> Iterator[Numbered]:
    for number, path in enumerate(split.files, split.first + 1):
        label = Path(path).parent.name.replace("-", " ").replace("_", " ")
        yield number, {"image": path, "label": label}


def _read_tar(split: FileSplit) -> Iterator[Numbered]:
    """Samples of a WebDataset: neighboring members that share the name up to the first dot of its last part."""
    with tarfile.open(split.path, "r|*") as tar:
        members = ((*_member_name(member.name), tar.extractfile(member)) for member in tar if member.isfile())
        for number, (_, group) in enumerate(itertools.groupby(members, key=lambda member: member[0]), 1):
            yield number, {suffix: file.read() for _, suffix, file in group if file is not None}


def _member_name(name: str) -> tuple[str, str]:
    folder, _, last = name.rpartition("/")
    key, _, suffix = last.partition(".")
    return f"{folder}/{key}", suffix.lower()


READERS: dict[str, Callable[[FileSplit], Iterator[Numbered]]] = {
    "lines": _read_lines,
    "json": _read_json,
    "text": _read_text,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "images": _read_images,
    "tar": _read_tar,
}
