"""Splits by the names of files and folders, `train-0.parquet` or `test/2.csv`, as data sets of the hub are laid out."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from lingu_ray.config import SourceConfig
from lingu_ray.errors import UserError

log = logging.getLogger(__name__)

# as `datasets` takes them
SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {spelling: split for split, spellings in SPELLINGS.items() for spelling in spellings}
_NAME = re.compile(rf"(?:^|[-_./])({'|'.join(_SPLIT_OF)})(?=[-_./])")


def split_of(path: Path, is_image: bool = False) -> str | None:
    """The split that a path below a folder names first; of an image its folders alone are asked."""
    asked = path.parent / "_" if is_image else path
    found = _NAME.search(str(asked).lower())
    return _SPLIT_OF[found[1]] if found else None


def of_split(source: SourceConfig, paths: Iterable[Path], top: str) -> set[Path]:
    """Those of the files of a folder that belong to the source's split; all, where they are of one split or name none.

    Args:
        source: its `split` is `train` where nothing else is said.
        paths: by their names below the folder.
        top: the folder, for messages.

    Raises:
        UserError: no file is of the split, or beside several splits there are files of none.
    """
    by_path = {path: split_of(path, source.format == "image_folder") for path in paths}
    counts = Counter(split or "of no split" for split in by_path.values())
    named = sorted(set(filter(None, by_path.values())))
    wanted = _SPLIT_OF.get(source.split, source.split)
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
