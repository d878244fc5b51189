"""Where the pictures are that rows name by path, and which files rows may name.

Rows of a hub dataset or of a bucket may be a stranger's: what they name elsewhere on this machine may be private, and
would come into corpus, report and model card. Rows in local files may name any.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lingu_ray import storage
from lingu_ray.config import SourceConfig
from lingu_ray.corpus.readers import FileSplit
from lingu_ray.paths import is_on_hub

FOREIGN = (
    "a hub's or bucket's rows may not name files of this machine: set `image_root` to its folder, or copy the rows here"
)


@dataclass(frozen=True)
class ImageFolder:
    """The folder, or location, where relative paths start. `within`: folders of the files that may be read; None: all.

    Links within these folders are followed, as those of a hub's snapshot to its blobs.
    """

    path: Path | str
    within: tuple[str, ...] | None = None

    def may_name(self, path: Path) -> bool:
        """Whether rows may name a file on this machine."""
        if self.within is None:
            return True
        return ".." not in path.parts and any(path.is_relative_to(folder) for folder in self.within)


def image_folder(source: SourceConfig, split: FileSplit) -> ImageFolder:
    """Where relative image paths start: `image_root`, else the folder of the file of records."""
    path = source.image_root or storage.parent(split.path)
    if is_on_hub(source.path):
        return ImageFolder(path, (path, *_of_hub(source.path)))
    if storage.is_remote(source.path):
        return ImageFolder(path, (path, str(storage.cache_folder())))
    return ImageFolder(path)


def _of_hub(name: str) -> tuple[str, str]:
    """Where `datasets` puts the files of a hub dataset: its snapshots, and what was taken out of archives."""
    from datasets.config import DOWNLOADED_DATASETS_PATH  # slow to import: only where it is used
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    snapshots = os.path.join(HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="dataset"))
    return os.path.abspath(snapshots), os.path.abspath(DOWNLOADED_DATASETS_PATH)
