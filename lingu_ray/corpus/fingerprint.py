"""The fingerprint of a corpus: its settings, the content of its files, and the student's processor.

Paths and times do not count: files that were copied or moved make the same corpus. Of an object in a bucket count size
and etag, which copies there keep. Of images that records name by path,
only those of a sample of the records are read; after changing others in place, delete the corpus's folder.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from lingu_ray import content, storage
from lingu_ray.config import CorpusConfig, SourceConfig
from lingu_ray.config.facts import NOT_IN_FINGERPRINT, fields_with
from lingu_ray.content import BLOCKS, combined, file_identity
from lingu_ray.corpus.compression import full_suffix
from lingu_ray.corpus.formats import FORMATS, BadRecord, Record
from lingu_ray.corpus.load_image import image_path
from lingu_ray.corpus.readers import FileSplit, reading
from lingu_ray.corpus.splits import evenly, image_folder
from lingu_ray.errors import UserError

PROCESSOR_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
NOT_THE_PROCESSOR = {"config.json", "generation_config.json", "model.safetensors.index.json"}
FILES_READ = 4096  # of a source; of further ones name and size count
REQUESTS = 32  # at the same time, for the versions of objects
SAMPLED_FILES, SAMPLED_RECORDS = 16, 32  # whose images are looked at: the first records of some files


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


def source_content(source: SourceConfig, splits: list[FileSplit]) -> str:
    """The fingerprint of a source's data: its files in order, and images that its records name by path.

    Raises:
        UserError: a file cannot be read.
    """
    paths = list(dict.fromkeys(path for split in splits for path in split.files or (split.path,)))
    read = set(evenly(paths, FILES_READ))
    blocks = max(2, 16 * BLOCKS // max(len(read), 1))  # at most a gibibyte of all files together
    try:
        with ThreadPoolExecutor(REQUESTS if storage.is_remote(source.path) else 1) as pool:
            of_read = pool.map(
                lambda path: _file(path, min(blocks, BLOCKS) if path in read else 0, source.format), paths
            )
            files = list(of_read)
        return combined([*files, *(_image(path) for path in _named_images(source, splits))])
    except OSError as error:
        raise UserError(f"source {source.name}: a file cannot be read: {error}") from error


def _file(path: str, blocks: int, format: str) -> str:
    """One file. Of its name counts what decides how it is read, and for folders of images the label."""
    file = Path(path)
    name = f"{file.parent.name}/{file.name}" if format == "image_folder" else full_suffix(file)
    if storage.is_remote(path):
        return f"{name} {storage.version(path)}"
    if file.is_dir():  # a saved dataset: its file splits name its files
        return name
    return f"{name} {file_identity(path, blocks) if blocks else os.path.getsize(path)}"


def _named_images(source: SourceConfig, splits: list[FileSplit]) -> Iterator[Path | str]:
    """Images that the first records of a sample of the files refer to by path, however the files are cut."""
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
    if isinstance(path, str):
        with suppress(FileNotFoundError):
            return f"{os.path.basename(path)} {storage.version(path)}"
    return f"{os.path.basename(path)} {file_identity(path) if os.path.isfile(path) else 'missing'}"


def _processor(folder: Path) -> dict[str, str]:
    found = {path for pattern in PROCESSOR_FILES for path in folder.glob(pattern) if path.name not in NOT_THE_PROCESSOR}
    return {path.name: file_identity(path) for path in sorted(found)}
