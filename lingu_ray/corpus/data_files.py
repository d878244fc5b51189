"""Which files of a folder hold rows. No file is left out in silence.

A file in a folder, or among the matches of a pattern, is read if a reader knows its kind. It is left out, with a line
in the log, if it is no data by the rules of `is_no_data`. Any other file is an error.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from lingu_ray.config import SourceConfig
from lingu_ray.corpus.compression import full_suffix
from lingu_ray.corpus.suffixes import ALL_PICTURES, MEDIA, PICTURES
from lingu_ray.errors import UserError, some

log = logging.getLogger(__name__)

DOCUMENTS = {".cff", ".html", ".ipynb", ".lock", ".log", ".md", ".md5", ".pdf", ".py", ".rst", ".sh", ".sha256"}
SETTINGS = {".cfg", ".ini", ".toml", ".yaml", ".yml"}
ABOUT = {"authors", "changelog", "citation", "contributing", "copying", "licence", "license", "notice", "readme"}
BOOKKEEPING = {
    *("_common_metadata", "_metadata", "_success"),
    *("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"),
}
IMAGE_METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}  # of `imagefolder` in `datasets`
TABLES = {"_delta_log": "a Delta table", ".hoodie": "a Hudi table", "_temporary": "what Spark has not finished writing"}
CACHED = re.compile(r"cache-[0-9a-f]+\.arrow")  # what `datasets` computed from the data beside it
NAMED = 3  # files named in a message


def sort_out(source: SourceConfig, names: Iterable[Path], is_known: Callable[[str], bool], top: str) -> set[Path]:
    """The files to read, of files named relative to `top`. The log says which are left out.

    Raises:
        UserError: some are neither of a known kind nor known to be no data, or belong to a table.
    """
    images = source.format == "image_folder"
    found: set[Path] = set()
    left_out: Counter[str] = Counter()
    unknown: list[Path] = []
    for path in names:
        suffix = full_suffix(path)
        _check_place(source, path, top)
        if is_no_data(path, images):
            left_out[suffix or path.name] += 1
        elif suffix in PICTURES if images else is_known(path.name):
            found.add(path)
        else:
            unknown.append(path)
    if unknown:
        raise UserError(_unknown(source, unknown, top))
    if not found and left_out.keys() & PICTURES:
        raise UserError(
            f"source {source.name}: {source.path} has pictures and no rows: let `path` name the file of the rows that "
            "name them, or take `format: image_folder`"
        )
    if left_out:
        log.info("source %s: left out as no data: %s", source.name, counted(left_out))
    return found


def _check_place(source: SourceConfig, path: Path, top: str) -> None:
    """Check that what a file holds is not told by others beside it, which are not read."""
    if source.format == "image_folder" and path.name.lower() in IMAGE_METADATA:
        raise UserError(
            f"source {source.name}: {path} in {top} says what its pictures show, and image_folder goes by names of "
            "folders: take `format: template` with `image: file_name`, or move the file"
        )
    if table := next((part for part in path.parts if part in TABLES), None):
        raise UserError(
            f"source {source.name}: {top} holds {TABLES[table]} ({table}), where rows of earlier versions "
            "stay: write the current ones into files of their own, or let `path` name the files to read"
        )


def is_no_data(path: Path, images: bool) -> bool:
    """Whether a file of a folder is no data: hidden, documentation, or a picture or medium that records may name.

    In a folder of images every file but a picture is no data.
    """
    suffix, name = full_suffix(path), path.name.lower()
    if any(part.startswith(".") for part in path.parts) or name in BOOKKEEPING or CACHED.fullmatch(name):
        return True
    if images:
        return suffix not in ALL_PICTURES
    about = name.partition(".")[0] in ABOUT and suffix in DOCUMENTS | {"", ".txt", ".bib"}
    return about or suffix in DOCUMENTS | SETTINGS | MEDIA | ALL_PICTURES


def _unknown(source: SourceConfig, files: list[Path], top: str) -> str:
    return (
        f"source {source.name}: {some(sorted(files))} in {top} can be read by no reader, and nothing is left out in "
        "silence: convert or move them, or let `path` name the files to read, by a pattern such as folder/*.jsonl"
    )


def counted(by_suffix: Counter[str]) -> str:
    """`3 .jsonl, 1 .md`."""
    return ", ".join(f"{count} {suffix}" for suffix, count in sorted(by_suffix.items()))
