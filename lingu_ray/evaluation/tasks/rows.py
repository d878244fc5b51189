"""Rows of a task's data, by the corpus's own readers: files, folders, and datasets of the hub.

Files and folders are read in place. Hub ids are read by `datasets` through its cache, and so are folders laid out for
it (`_is_for_datasets`), those in a bucket from the node's copy. One file split is in memory at a time.
"""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from lingu_ray import storage
from lingu_ray.config import SourceConfig, TaskConfig
from lingu_ray.corpus.card import configurations
from lingu_ray.corpus.data_files import IMAGE_METADATA
from lingu_ray.corpus.files import data_below, has_splits, hub_files, names_files
from lingu_ray.corpus.readers import UNREADABLE, FileSplit
from lingu_ray.corpus.record import BadRecord, Record
from lingu_ray.corpus.splits import is_known, refuse_of_hub, split_source
from lingu_ray.errors import UserError
from lingu_ray.paths import is_on_hub, not_found

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a row is: `number` counts from 1 within its file (JSONL: the line)."""

    split: FileSplit
    number: int

    def read(self) -> Record:
        """Read the row, from the file again where its file split is no longer in memory.

        Raises:
            BadRecord: it cannot be read.
        """
        record = _records(self.split)[self.number]
        if isinstance(record, BadRecord):
            raise record
        return record

    def __str__(self) -> str:
        return self.split.origin(self.number)


def places(config: TaskConfig) -> Iterator[tuple[str, Place]]:
    """Every row's name (its number, after that of its file where there are several) and place, in order.

    Raises:
        UserError: there is no data, or a file cannot be read.
    """
    # templates over columns count with the numbers of class labels; formats are read as the corpus reads them
    splits = [replace(split, label_names=config.format is not None) for split in _file_splits(config)]
    files = list(dict.fromkeys(split.path for split in splits))
    for split in splits:
        try:
            numbers = list(_records(split))
        except UNREADABLE as error:
            raise UserError(f"evaluation.tasks: {config.name}: {split.path} cannot be read: {error}") from error
        file = f"{files.index(split.path) + 1}:" if len(files) > 1 else ""
        for number in numbers:
            yield f"{file}{number}", Place(split, number)


@lru_cache(maxsize=1)
def _records(split: FileSplit) -> dict[int, Record | BadRecord]:
    return dict(split.records())


def source_of(config: TaskConfig) -> SourceConfig:
    """The task's data as a source of a corpus."""
    return SourceConfig(
        name=config.name,
        format=config.format or "messages",  # the reader needs it for `image_folder` alone
        path=config.path,
        revision=config.revision,
        subset=config.subset,
        split=config.split or "train",
    )


def _file_splits(config: TaskConfig) -> list[FileSplit]:
    source, path = source_of(config), config.path
    if config.split is None and is_on_hub(path):
        raise UserError(
            f"evaluation.tasks: {config.name}: {not_found(config.path)}; correct its `path`, or set `split`, such as "
            "test, for a dataset of the hub"
        )
    try:
        if not is_on_hub(path):
            refuse_of_hub(source, "revision")
        if config.split is None and has_splits(source, is_known):
            raise UserError(f"{config.name}: {config.path} has splits: set `split`, such as test")
        is_saved = storage.is_file(storage.below(path, "dataset_dict.json"))
        if is_on_hub(path) or (config.split and not (is_saved or names_files(path)) and _is_for_datasets(config)):
            return _fetched(source.model_copy(update={"path": storage.local_copy(path)}))
        if config.subset is not None and not names_files(path):
            raise UserError(
                f"{config.name}: `subset` chooses within a dataset of the hub, or a folder laid out as one with "
                f"`split` set; of {path} all would be read: let `path` name what is meant, and leave `subset` out "
                "(null, where the task is of the catalog)"
            )
        if names_files(path) and (idle := [name for name in ("subset", "split") if getattr(config, name) is not None]):
            log.warning(
                "evaluation.tasks: %s: %s has no splits: all of it is read, whatever `%s` says",
                *(config.name, path, "` and `".join(idle)),
            )
        return split_source(source)
    except UserError as error:
        raise UserError(f"evaluation.tasks: {str(error).removeprefix('source ')}") from error


def _is_for_datasets(config: TaskConfig) -> bool:
    """Whether `datasets` alone knows the rows of a folder: by a subset, its card, or pictures without a format."""
    if config.subset is not None:
        return True
    if config.format is not None:  # rows as a source of the corpus has them
        return False
    if all(name.name in IMAGE_METADATA for name in data_below(source_of(config), is_known)):
        return True
    return configurations(config.path) is not None


def _fetched(source: SourceConfig) -> list[FileSplit]:
    """File splits of a dataset of the hub, or of a folder that is laid out as one. Its own code is not run."""
    files = hub_files(source)
    return [split for file in files for split in split_source(source.model_copy(update={"path": glob.escape(file)}))]
