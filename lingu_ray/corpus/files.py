"""Finds the files of a source: by its path, a pattern, a location in a bucket, or a hub id."""

from __future__ import annotations

import glob
import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from lingu_ray import storage
from lingu_ray.atomic import parse_object
from lingu_ray.config import SourceConfig
from lingu_ray.corpus.arrow import open_arrow
from lingu_ray.corpus.card import configurations
from lingu_ray.corpus.compression import full_suffix
from lingu_ray.corpus.data_files import NAMED, counted, is_no_data, sort_out
from lingu_ray.corpus.patterns import matches, split_pattern
from lingu_ray.corpus.split_names import doubtful_shards, of_split, split_of
from lingu_ray.corpus.suffixes import PICTURES
from lingu_ray.errors import UserError, causes
from lingu_ray.paths import ask_hub, is_on_hub, not_found

log = logging.getLogger(__name__)


def find_files(source: SourceConfig, is_known: Callable[[str], bool]) -> list[str]:
    """Absolute paths, or locations, of a source's files, sorted; a folder of `datasets.save_to_disk` counts as a file.

    `is_known`: whether a file of that name can be read.

    Raises:
        UserError: there are no files, or some that are neither of a known kind nor known to be no data.
    """
    path, is_remote = Path(source.path), storage.is_remote(source.path)
    if is_remote:
        found = _in_bucket(source, is_known)
    elif not path.is_absolute():
        found = set(map(os.path.abspath, hub_files(source)))
    elif path.is_dir():
        found = _in_folder(source, path, is_known)
    elif os.path.lexists(path):  # `splits` reports a broken link
        found = {str(path)}
    else:
        found = _matched(source, path, is_known)
    if not found:
        missing = not (is_remote or path.exists() or glob.has_magic(source.path))
        what = not_found(path) if missing else f"no data at {source.path}"
        raise UserError(f"source {source.name}: {what}; {_cure(source.path)}")
    return sorted(found)


def has_splits(source: SourceConfig, is_known: Callable[[str], bool]) -> bool:
    """Whether a folder or location holds several splits, by the names of its files or as a saved dataset."""
    if names_files(source.path):
        return False
    if storage.is_file(storage.below(source.path, "dataset_dict.json")):
        return True
    data = data_below(source, is_known)
    return len({split for name in data if (split := split_of(name, source.format == "image_folder"))}) > 1


def data_below(source: SourceConfig, is_known: Callable[[str], bool]) -> list[Path]:
    """Names of the files below a folder or location that hold rows in the source's format."""
    if storage.is_remote(source.path):
        names = [Path(entry.name) for entry in storage.entries(source.path)]
    else:
        names = [path.relative_to(source.path) for path in _walk(source, Path(source.path))]
    if source.format == "image_folder":
        return [name for name in names if full_suffix(name) in PICTURES]
    return [name for name in names if is_known(name.name) and not is_no_data(name, images=False)]


def names_files(path: str) -> bool:
    """Whether a path is a file, a pattern, or a saved dataset of one split; not a folder of files."""
    if storage.is_remote(path) and (glob.has_magic(path) or storage.is_file(path)):
        return True
    return not (storage.is_remote(path) or Path(path).is_dir()) or storage.is_file(storage.below(path, "state.json"))


def hub_files(source: SourceConfig) -> list[str]:
    """Fetch a dataset of the hub, or of a folder laid out as one, and return its Arrow files; all nodes see the cache.

    Raises:
        UserError: it cannot be fetched, or `split` is a slice.
    """
    from datasets import Dataset, load_dataset  # slow to import: only where they are used
    from datasets.exceptions import DatasetsError

    from lingu_ray.hub import HUB_ERRORS, why_not_had

    if on_hub := is_on_hub(source.path):
        ask_hub(source.name, source.path)
    try:
        dataset = load_dataset(source.path, source.subset, split=source.split, revision=source.revision)
    except HUB_ERRORS as error:
        which = f"revision {source.revision or 'main'}, subset {source.subset}, split {source.split}"
        raise UserError(
            f"source {source.name}: {not_found(source.path)}, and no dataset {source.path!r} that the hub gives "
            f"({which}): {why_not_had(error) if on_hub else error}"
        ) from error
    except (RuntimeError, DatasetsError) as error:  # a script, which is not run; damaged data files
        *_, first = causes(error)
        why = error if first is error else f"{error} ({type(first).__name__}: {first})"
        raise UserError(f"source {source.name}: {source.path} cannot be read: {why}") from error
    files = [file["filename"] for file in dataset.cache_files] if isinstance(dataset, Dataset) else []
    if sum(_arrow_rows(path) for path in files) != len(dataset):
        raise UserError(
            f"source {source.name}: `split` must be a whole split, not {source.split!r}; use `limit` for less"
        )
    return files


def _arrow_rows(path: str) -> int:
    with open_arrow(path) as (_, batches):
        return sum(batch.num_rows for batch in batches)


def _in_folder(source: SourceConfig, folder: Path, is_known: Callable[[str], bool]) -> set[str]:
    if saved := _saved_dataset(source, str(folder)):
        return {saved}
    names = (path.relative_to(folder) for path in _walk(source, folder))
    return _of_split(source, names, is_known, str(folder))


def _matched(source: SourceConfig, pattern: Path, is_known: Callable[[str], bool]) -> set[str]:
    """The files that a pattern matches, and those in the folders that it matches, which `**` walks through itself."""
    top = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    matches = [Path(p) for p in glob.glob(str(pattern), recursive=True)]
    names = (p.relative_to(top) for p in matches if not p.is_dir())
    found = {str(top / name) for name in sort_out(source, names, is_known, str(top))}
    _warn_of_kinds(source, found)
    for folder in (p for p in matches if p.is_dir() and "**" not in pattern.parts):
        found |= _in_folder(source, folder, is_known)
    _warn_of_splits(source, (Path(path).relative_to(top) for path in found))
    return found


def _in_bucket(source: SourceConfig, is_known: Callable[[str], bool]) -> set[str]:
    """An object, all objects below a location, or those that a pattern matches."""
    top, pattern = split_pattern(source.path)
    if not pattern and (saved := _saved_dataset(source, top)):
        return {saved}
    there = (entry.name for entry in storage.entries(top))
    below = "**" not in pattern
    names = [Path(name) for name in there if not pattern or matches(pattern, name.split("/"), below)]
    if not names and storage.is_file(source.path):
        return {source.path}
    if not pattern:
        return _of_split(source, names, is_known, top)
    found = sort_out(source, names, is_known, top)
    _warn_of_kinds(source, found)
    _warn_of_splits(source, found)
    return {storage.join(top, str(name)) for name in found}


def _of_split(source: SourceConfig, names: Iterable[Path], is_known: Callable[[str], bool], top: str) -> set[str]:
    """The files of a folder, or below a location, that are read: those of the source's split."""
    if not (found := sort_out(source, names, is_known, top)):
        return set()
    found = of_split(source, found, top)
    _warn_of_kinds(source, found)
    _warn_of_shards(source, found, top)
    _warn_of_configurations(source, top)
    return {storage.below(top, str(name)) for name in found}


def _cure(path: str) -> str:
    """The cure for a path without data; WebDataset users write the numbers of shards in braces."""
    braces = ": patterns have no braces, but *, ? and [0-9], as in shard-*.tar" if "{" in path else ""
    return f"correct its `path`{braces}"


def _saved_dataset(source: SourceConfig, path: str) -> str | None:
    """The folder of the source's split, if `path` was written by `datasets.save_to_disk`; else None."""
    if not storage.is_file(splits_file := storage.below(path, "dataset_dict.json")):
        return path if storage.is_file(storage.below(path, "state.json")) else None
    split = storage.below(path, source.split)
    if not storage.is_file(storage.below(split, "state.json")):
        with storage.open_file(splits_file) as file:
            splits = parse_object(file.read(), splits_file, "splits", cure="save the dataset again")["splits"]
        raise UserError(f"source {source.name}: {path} has no split {source.split!r}, only {splits}; set `split`")
    return split


def _walk(source: SourceConfig, top: Path) -> Iterator[Path]:
    """All files below a folder, also behind links, but each folder once."""

    def fail(error: OSError) -> None:
        raise UserError(f"source {source.name}: {error.filename} cannot be read: {error.strerror}") from error

    seen: set[str] = set()
    for folder, inner, names in os.walk(top, onerror=fail, followlinks=True):
        inner.sort()
        if (real := os.path.realpath(folder)) in seen:
            inner.clear()
            continue
        seen.add(real)
        yield from (Path(folder, name) for name in names)


def _warn_of_kinds(source: SourceConfig, paths: Iterable[Path | str]) -> None:
    if source.format != "image_folder":
        _warn_of_several(source, "kinds", Counter(full_suffix(path) for path in paths), "folder/*{}")


def _warn_of_splits(source: SourceConfig, names: Iterable[Path]) -> None:
    is_image = source.format == "image_folder"
    counts = Counter(split for name in names if (split := split_of(name, is_image)))
    _warn_of_several(source, "splits", counts, "folder/*{}*")


def _warn_of_shards(source: SourceConfig, names: Iterable[Path], folder: str) -> None:
    if doubtful := doubtful_shards(names):
        log.warning(
            "source %s: the shards in %s are not one whole set: %s; fetch those that are missing, and remove what an "
            "earlier version left",
            *(source.name, folder, "; ".join(doubtful[:NAMED]) + ("; …" if len(doubtful) > NAMED else "")),
        )


def _warn_of_configurations(source: SourceConfig, folder: str) -> None:
    names = configurations(folder) or []
    if len(names) > 1:
        log.warning(
            "source %s: %s has %d configurations by its README.md (%s), and all are read; if not all are meant, let "
            "`path` name the folder or files of one",
            *(source.name, folder, len(names), ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")),
        )


def _warn_of_several(source: SourceConfig, what: str, counts: Counter[str], pattern: str) -> None:
    if len(counts) > 1:
        such = pattern.format(min(counts))
        cure = f"if not all of them are meant, let `path` name those of one, by a pattern such as {such}"
        log.warning("source %s: files of several %s are all read: %s; %s", source.name, what, counted(counts), cure)
