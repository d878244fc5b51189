"""Cuts the files of a source into file splits, which tasks read independently; they are the same on every machine.

A file split is not a split of a hub dataset (train, test), which is the source's setting `split`.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import pyarrow.parquet as pq

from lingu_ray import storage
from lingu_ray.atomic import parse_object
from lingu_ray.config import SourceConfig
from lingu_ray.corpus.arrow import open_arrow, random_access
from lingu_ray.corpus.compression import DECOMPRESSORS, RECORD_BYTES, inner_suffix, is_compressed, open_file, read_block
from lingu_ray.corpus.files import find_files, names_files
from lingu_ray.corpus.json_array import array_parts
from lingu_ray.corpus.readers import FileSplit, reading
from lingu_ray.errors import UserError
from lingu_ray.paths import is_on_hub, not_found

T = TypeVar("T")
log = logging.getLogger(__name__)

FILES_PER_SPLIT = 512  # of an image folder
PART_BYTES, MOST_PARTS = 32 << 20, 16  # of a row group; each part is read from the group's beginning


def split_source(source: SourceConfig) -> list[FileSplit]:
    """Split a source into file splits, in a fixed order, trimmed to `source.limit` records.

    Raises:
        UserError: nothing is found at `source.path`, or a file cannot be read.
    """
    files = find_files(source, is_known)
    if source.format == "image_folder":
        splits = list(_split_images(files))
    else:
        splits = [split for path in files for split in _split_file(source, path)]
    return splits if source.limit is None else list(_trim(source, splits, source.limit))


def check_source(source: SourceConfig, splits: list[FileSplit]) -> None:
    """Check what would make all rows of a source bad: its settings, its folder of images, and its first record.

    Raises:
        UserError: the folder is missing, there are no records, a file cannot be read, or a setting does not fit.
    """
    _check_chosen(source)
    if (root := source.image_root) is not None:
        if storage.is_remote(root) and not storage.exists(root):
            raise UserError(f"source {source.name}: image_root: there is nothing below {root}")
        if not (storage.is_remote(root) or Path(root).is_dir()):
            raise UserError(f"source {source.name}: image_root: {not_found(root, 'folder')}")
    _warn_of_one_label(source, splits)
    for split in splits:
        with reading(source.name, split.path):
            if next(split.records(), None) is not None:
                return
    raise UserError(f"source {source.name}: {source.path} holds no records; correct its `path`, or leave it out")


def _warn_of_one_label(source: SourceConfig, splits: list[FileSplit]) -> None:
    """Warn if all pictures have the same label: mostly it is the name of a folder that has no folders of classes."""
    folders = {Path(path).parent.name for split in splits for path in split.files}
    if len(folders) == 1 and "{label" in f"{source.prompt} {source.answer or '{label}'}":
        log.warning(
            "source %s: the {label} of all its pictures is %r, the name of their folder; if that is no class of them, "
            "say what they show by a metadata.jsonl and `format: template`",
            *(source.name, *folders),
        )


def _check_chosen(source: SourceConfig) -> None:
    """Check that the source has revisions, subsets and splits to choose from, if the settings choose."""
    if is_on_hub(source.path):
        return
    refuse_of_hub(source, "revision", "subset")
    if source.split != "train" and names_files(source.path):
        raise UserError(
            f"source {source.name}: `split` chooses within a folder or a dataset, and {source.path} has one split: "
            "leave it out"
        )


def refuse_of_hub(source: SourceConfig, *settings: str) -> None:
    """Refuse settings for hub datasets, for a source that is not on the hub.

    Raises:
        UserError: one of them is given.
    """
    for setting in settings:
        if getattr(source, setting) is not None:
            raise UserError(
                f"source {source.name}: `{setting}` is for datasets of the hub, and {source.path} is not one: leave it "
                "out, and let `path` name what is meant"
            )


def evenly(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, evenly spread, with the first and the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def is_known(name: str) -> bool:
    """Whether a file of that name can be split and read."""
    suffix = inner_suffix(name)
    return suffix in SPLITTERS and (suffix not in NEVER_COMPRESSED or not is_compressed(name))


def _split_file(source: SourceConfig, path: str) -> list[FileSplit]:
    if not (storage.is_remote(path) or Path(path).is_dir() or Path(path).is_file()):
        raise UserError(f"source {source.name}: {path} is no file, or a link to none; correct it, or leave it out")
    with reading(source.name, path):
        if _is_saved(path):
            return list(_split_saved(path))
        if is_known(path):
            return list(SPLITTERS[inner_suffix(path)](path))
    kinds, compressed = ", ".join(sorted(SPLITTERS)), ", ".join(DECOMPRESSORS)
    raise UserError(
        f"source {source.name}: {path} is of no known kind ({kinds}, all but {', '.join(NEVER_COMPRESSED)} also with "
        f"{compressed}; or a folder of datasets.save_to_disk)"
    )


def _is_saved(path: str) -> bool:
    """Whether a path is a folder of `datasets.save_to_disk`, not a file."""
    if storage.is_remote(path):
        return not is_known(path) and storage.is_file(storage.join(path, "state.json"))
    return Path(path).is_dir()


def _trim(source: SourceConfig, splits: list[FileSplit], limit: int) -> Iterator[FileSplit]:
    for split in splits:
        if limit <= 0:
            return
        with reading(source.name, split.path):
            count = split.count(limit)
        yield replace(split, limit=count)
        limit -= count


def _split_lines(kind: str, path: str) -> Iterator[FileSplit]:
    """Blocks of whole lines; a compressed file is one split, since it can be read from its beginning only."""
    if is_compressed(path):
        yield FileSplit(kind, path)
        return
    start = line = 0
    with open_file(path) as file:
        while block := read_block(file):
            yield FileSplit(kind, path, start, start + len(block), line)
            start += len(block)
            line += block.count(b"\n")


def _split_json(path: str) -> Iterator[FileSplit]:
    """The records of a JSON array, or JSON lines, which many `.json` files hold instead; one split if it is neither.

    A compressed array is one split, too.
    """
    with open_file(path) as file:
        parts = itertools.islice(array_parts(file), 1 if is_compressed(path) else None)
        splits = [FileSplit("json", path, part.start, part.stop, part.first) for part in parts]
    if not splits:
        yield from _split_no_array(path)
    elif is_compressed(path):
        yield FileSplit("json", path)
    else:
        yield from splits


def _split_no_array(path: str) -> Iterator[FileSplit]:
    with open_file(path) as file:
        head = next((line for line in iter(partial(file.readline, RECORD_BYTES), b"") if line.strip()), None)
    if head is None:
        return
    try:
        is_lines = isinstance(json.loads(head), dict)
    except (ValueError, RecursionError):
        is_lines = False
    yield from _split_lines("lines", path) if is_lines else [FileSplit("json", path)]


def _split_parquet(path: str) -> Iterator[FileSplit]:
    """Row groups; large ones of local files in several parts, since pandas writes a million rows into one."""
    metadata = pq.read_metadata(random_access(path))
    first = 0
    for group in range(metadata.num_row_groups):
        about = metadata.row_group(group)
        parts = 1 if storage.is_remote(path) else min(MOST_PARTS, about.num_rows, about.total_byte_size // PART_BYTES)
        for size in _equal_parts(about.num_rows, max(1, parts)):
            yield FileSplit("parquet", path, group, group + 1, first, size if parts > 1 else None)
            first += size


def _equal_parts(count: int, parts: int) -> list[int]:
    return [count * (i + 1) // parts - count * i // parts for i in range(parts)]


def _split_saved(path: str) -> Iterator[FileSplit]:
    with storage.open_file(file := storage.below(path, "state.json")) as content:
        state = parse_object(content.read(), file, "_data_files", cure="save the dataset again")
    for data in state["_data_files"]:
        yield from _split_arrow(storage.below(path, data["filename"]))


def _split_arrow(path: str) -> Iterator[FileSplit]:
    first = 0
    with open_arrow(path) as (_, batches):
        for index, batch in enumerate(batches):
            yield FileSplit("arrow", path, index, index + 1, first)
            first += batch.num_rows


def _split_images(files: list[str]) -> Iterator[FileSplit]:
    for first in range(0, len(files), FILES_PER_SPLIT):
        part = tuple(files[first : first + FILES_PER_SPLIT])
        yield FileSplit("images", storage.parent(part[0]), first=first, files=part)


NEVER_COMPRESSED = (".arrow", ".parquet")  # they compress their columns themselves
SPLITTERS: dict[str, Callable[[str], Iterator[FileSplit]]] = {
    ".jsonl": lambda path: _split_lines("lines", path),
    ".ndjson": lambda path: _split_lines("lines", path),
    ".json": _split_json,
    ".csv": lambda path: iter([FileSplit("csv", path)]),
    ".tsv": lambda path: iter([FileSplit("csv", path)]),
    ".parquet": _split_parquet,
    ".arrow": _split_arrow,
    ".txt": lambda path: _split_lines("text", path),
    ".tar": lambda path: iter([FileSplit("tar", path)]),
}
