"""Splits (train, test, …) in names of files and folders, as in data sets of the hub: `test/2.csv`; and in records."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from lingu_ray.config import SourceConfig
from lingu_ray.corpus.record import BadRecord, Record
from lingu_ray.errors import UserError

log = logging.getLogger(__name__)

# as `datasets` takes them
SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {spelling: split for split, spellings in SPELLINGS.items() for spelling in spellings}
_KEYS = ("split", "data_split", "dataset_split", "set_name", "partition")  # of records, some in an object of metadata
_NAME = re.compile(rf"(?:^|[-_./])({'|'.join(_SPLIT_OF)})(?=[-_./])")
_SHARD = re.compile(r"(?:^|-)(\w+(?:\.\w+)*)-\d{5}-of-\d{5}")  # as `push_to_hub` writes splits into `data`

_NUMBERED = re.compile(r"(.*)-(\d+)-of-(\d+)(?:-[0-9a-f]{16})?\.")  # with a fingerprint, as older versions write them


def split_of(path: Path, is_image: bool) -> str | None:
    """The first split in a path below a folder; for an image, in its folders only.

    A shard belongs to the exact split in its name: `train_sft-00000-of-00003` to `train_sft`, not to `train`.
    """
    shard = None if is_image else _SHARD.search(path.name)
    if shard and (path.parent == Path("data") or _NAME.match(f"{shard[1].lower()}-")):
        return _SPLIT_OF.get(shard[1].lower(), shard[1])
    asked = path.parent / "_" if is_image else path
    found = _NAME.search(str(asked).lower())
    return _SPLIT_OF[found[1]] if found else None


def of_split(source: SourceConfig, paths: Iterable[Path], top: str) -> set[Path]:
    """The files of a folder that belong to the source's split; all files, if they name one split or none.

    Args:
        source: its `split`, by default `train`; if there is no `train`, it stands for the only split `train_…`.
        paths: of the files, relative to the folder.
        top: the folder, for messages.

    Raises:
        UserError: no file belongs to the split, or there are several splits and files without one.
    """
    by_path = {path: split_of(path, source.format == "image_folder") for path in paths}
    counts = Counter(split or "of no split" for split in by_path.values())
    named = sorted(set(filter(None, by_path.values())))
    wanted = _SPLIT_OF.get(source.split, source.split)
    if wanted not in named and len(like := [split for split in named if split.startswith(f"{wanted}_")]) == 1:
        [wanted] = like
    if len(named) < 2 and wanted in ("train", *named):
        return set(by_path)
    where = f"source {source.name}: {top} has {', '.join(f'{counts[split]} {split}' for split in sorted(counts))}"
    cure = "set `split`, or let `path` name the files that are meant, by a pattern such as folder/*train*"
    if wanted not in named:
        raise UserError(f"{where}, and no file of the split {source.split!r}: {cure}")
    if None in by_path.values():
        raise UserError(f"{where}, and what belongs to the split {source.split!r} is not known: {cure}")
    log.info("%s; read of them: %s", where, wanted)
    return {path for path, split in by_path.items() if split == wanted}


def check_not_held_out(record: Record) -> None:
    """Check that a record to be trained on does not say that it belongs to a validation or test split.

    Raises:
        BadRecord: it does, itself or in an object in it, such as `metadata`; files of one split may hold all.
    """
    objects = (value for value in record.values() if isinstance(value, dict))
    for held_by in (record, *objects):
        for key in _KEYS:
            if _SPLIT_OF.get(str(held_by.get(key)).strip().lower(), "train") != "train":
                raise BadRecord(
                    "held_out",
                    f"{key!r} is {held_by[key]!r}, and rows are trained on: put those that are meant into a file of "
                    f"their own; if these are, take {key!r} out",
                )


def doubtful_shards(paths: Iterable[Path]) -> list[str]:
    """What there is of numbered shards, `NAME-00000-of-00003`, where not all are there, or those of several sets."""
    sets: dict[str, dict[int, set[int]]] = {}
    for found in filter(None, (_NUMBERED.match(str(path)) for path in paths)):
        sets.setdefault(found[1], {}).setdefault(int(found[3]), set()).add(int(found[2]))
    return [
        f"{name}: {' and '.join(f'{len(there)} of {count}' for count, there in sorted(counts.items()))}"
        for name, counts in sorted(sets.items())
        if len(counts) > 1 or any(len(there) < count for count, there in counts.items())
    ]
