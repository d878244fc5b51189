"""The fingerprint of a corpus: its settings, the content of its files, and the student's processor.

Paths and times do not count: files that were copied or moved make the same corpus. An object in a bucket counts by its
size and etag, which copies keep. Files are read whole, up to `WHOLE` bytes each, if those of a source have at most
`READ` bytes together. Else each file is read in part, spread over it, at least its beginning and its end. Images that
records name by path are read for a sample of the records only. After changing in place what is not read, delete the
corpus's folder.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from lingu_ray import content, storage
from lingu_ray.config import CorpusConfig, SourceConfig
from lingu_ray.config.facts import NOT_IN_FINGERPRINT, fields_with
from lingu_ray.content import BLOCK, BLOCKS, combined, file_identity
from lingu_ray.corpus.compression import full_suffix
from lingu_ray.corpus.formats import FORMATS
from lingu_ray.corpus.image_folder import image_folder
from lingu_ray.corpus.labels import info_beside
from lingu_ray.corpus.load_image import image_path
from lingu_ray.corpus.named_file import read_named
from lingu_ray.corpus.readers import FileSplit, reading, split_labels
from lingu_ray.corpus.record import BadRecord, Record
from lingu_ray.corpus.splits import evenly
from lingu_ray.errors import UserError

log = logging.getLogger(__name__)

PROCESSOR_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
NOT_THE_PROCESSOR = {"config.json", "generation_config.json", "model.safetensors.index.json"}
READ = 1 << 30  # bytes of a source's files that are read; at most twice as many
WHOLE = BLOCK * BLOCKS  # of one file, at most
REQUESTS = 32  # at the same time, for the versions of objects
SAMPLED_FILES, SAMPLED_RECORDS = 16, 32  # whose images are read: the first records of some files


def fingerprint(
    corpus: CorpusConfig,
    sources: tuple[SourceConfig, ...],
    contents: dict[str, str],
    processor_dir: Path,
    version: int,
) -> str:
    """Sixteen hexadecimal digits, equal for equal settings, contents of sources (`source_content`), processor, version.

    `version`: of what a build writes (`store.VERSION`).
    """
    described: dict[str, Any] = {
        "version": version,
        "corpus": corpus.model_dump(mode="json", exclude={"sources", *fields_with(NOT_IN_FINGERPRINT, CorpusConfig)}),
        "sources": [
            source.model_dump(mode="json", exclude=fields_with(NOT_IN_FINGERPRINT, SourceConfig)) for source in sources
        ],
        "contents": [contents[source.name] for source in sources],
        "processor": _processor(processor_dir),
    }
    return content.fingerprint(described, digits=16)


def source_content(source: SourceConfig, splits: list[FileSplit], warn: bool = False) -> str:
    """The fingerprint of a source's data: its files in order, names of class labels, images that records name by path.

    `warn`: of files that are copies of others, whose rows come twice.

    Raises:
        UserError: a file cannot be read.
    """
    paths = list(dict.fromkeys(path for split in splits for path in split.files or (split.path,)))
    try:
        images = [_image(path) for path in _named_images(source, splits)]
        files = _files(source, paths)
        if warn:
            _warn_of_copies(source, paths, files)
        return combined([*files, *_label_names(source, splits), *images])
    except OSError as error:
        raise UserError(f"source {source.name}: a file cannot be read: {error}") from error


def _files(source: SourceConfig, paths: list[str]) -> list[str]:
    identity = partial(_file, format=source.format)
    if not storage.is_remote(source.path):
        return list(map(identity, paths, _shares(paths)))
    with ThreadPoolExecutor(REQUESTS) as pool:
        return list(pool.map(identity, paths, _shares(paths)))


def _warn_of_copies(source: SourceConfig, paths: list[str], identities: list[str]) -> None:
    first: dict[str, str] = {}
    originals = [first.setdefault(identity, path) for path, identity in zip(paths, identities, strict=True)]
    copies = [(copy, path) for copy, path in zip(paths, originals, strict=True) if copy != path]
    if copies and source.format != "image_folder":
        log.warning(
            "source %s: its files have copies among them (%d, the first is %s of %s), whose rows are trained on once "
            "more; if that is not meant, remove them, or let `path` name the files by a pattern",
            *(source.name, len(copies), *copies[0]),
        )


def _shares(paths: list[str]) -> list[int]:
    """Bytes to read of each file: its share of `READ` by size, but at least an equal share; all if all files fit."""
    sizes = [0 if storage.is_remote(path) else min(os.path.getsize(path), WHOLE) for path in paths]
    total = max(sum(sizes), 1)
    return [-(-READ * max(size * len(paths), total) // (total * len(paths))) for size in sizes]


def _file(path: str, share: int, format: str) -> str:
    """The identity of one file: its content, and the part of its name that matters (suffix, or an image's label)."""
    file = Path(path)
    name = f"{file.parent.name}/{file.name}" if format == "image_folder" else full_suffix(file)
    if storage.is_remote(path):
        return f"{name} {storage.version(path)}"
    if file.is_dir():  # a saved dataset, whose file splits are its files
        return name
    identity = _ends(path, share) if share < 2 * BLOCK else file_identity(path, min(-(-share // BLOCK), BLOCKS))
    return f"{name} {identity}"


def _ends(path: str, share: int) -> str:
    """The identity of a file by its size and `share` bytes, half of its beginning and half of its end."""
    size, half = os.path.getsize(path), -(-share // 2)
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open(path, "rb", buffering=0) as file:
        for start in (0, max(0, size - half)):
            file.seek(start)
            digest.update(file.read(half))
    return digest.hexdigest()


def _label_names(source: SourceConfig, splits: list[FileSplit]) -> list[str]:
    """The identities of the files beside the data that name class labels."""
    found: dict[Path, str] = {}
    for split in {split.path: split for split in splits}.values():
        if info_beside(split.path):
            with reading(source.name, split.path):
                file = split_labels(split).file
            if file and file not in found:
                found[file] = file_identity(file)
    return list(found.values())


def _named_images(source: SourceConfig, splits: list[FileSplit]) -> Iterator[Path | str]:
    """The images that records name by path: those of the first records of some files, independent of file splits."""
    if source.format == "image_folder":  # its files are the images
        return
    of_files = [list(of_file) for _, of_file in itertools.groupby(splits, key=lambda split: split.path)]
    for of_file in evenly(of_files, SAMPLED_FILES):
        folder = image_folder(source, of_file[0])
        for record in _first_records(source, of_file):
            try:
                references = [image for raw_row in FORMATS[source.format](record, source) for image in raw_row.images]
                paths = [image_path(reference, folder) for reference in references]
            except Exception:
                continue  # the build reports it
            yield from filter(None, paths)


def _first_records(source: SourceConfig, splits: list[FileSplit]) -> list[Record]:
    """The first records of a file, without those that cannot be read."""
    numbered = itertools.chain.from_iterable(split.records() for split in splits)
    with reading(source.name, splits[0].path):
        first = [record for _, record in itertools.islice(numbered, SAMPLED_RECORDS)]
    return [record for record in first if not isinstance(record, BadRecord)]


def _image(path: Path | str) -> str:
    name = os.path.basename(path)
    with suppress(OSError, ValueError):  # not there, not readable, no name of a file
        return f"{name} {storage.version(path) if isinstance(path, str) else read_named(path, file_identity)}"
    return f"{name} missing"


def _processor(folder: Path) -> dict[str, str]:
    found = {path for pattern in PROCESSOR_FILES for path in folder.glob(pattern) if path.name not in NOT_THE_PROCESSOR}
    return {path.name: file_identity(path) for path in sorted(found)}
