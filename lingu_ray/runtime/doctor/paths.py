"""The local files and folders that a run reads: which settings name them, and whether a node has them."""

from __future__ import annotations

import glob
import os

from lingu_ray.config import Config


def needed_paths(config: Config) -> dict[str, str]:
    """Paths and patterns of models and data by the setting that names them.

    Ids of the hub, locations in buckets and names of tasks are none: a path in the settings is absolute. The demo makes
    what it reads.
    """
    if config.demo is not None:
        return {}
    tower, _ = config.student.tower or (None, None)
    named = {
        "student.path": config.student.path,
        "student.from_teacher.tower": tower,
        "teacher.path": config.teacher.path,
    }
    for source in config.training_sources():
        named[f"corpus.sources.{source.name}.path"] = source.path
        named[f"corpus.sources.{source.name}.image_root"] = source.image_root
    named |= {f"evaluation.tasks.{task.name}.path": task.path for task in config.evaluation.tasks}
    return {setting: path for setting, path in named.items() if path is not None and os.path.isabs(path)}


def is_here(path: str) -> bool:
    """Whether this node has a file or folder, or one that a pattern matches."""
    return os.path.exists(path) or (glob.has_magic(path) and any(True for _ in glob.iglob(path, recursive=True)))
