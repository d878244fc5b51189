"""Finding evaluation items in the rows that a run trains on.

An item is found by its pictures, pixel by pixel, or, without any, by a fifth of its words in a row. Pictures that were
resized or compressed with loss, and texts in other words, are not: a perceptual hash takes charts of one kind for each
other.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from lingu_ray.config import Config
from lingu_ray.corpus.store import Corpus
from lingu_ray.evaluation.contamination.found import RULES, Found, read_found, write_found
from lingu_ray.evaluation.contamination.items import Marks, Seen, TaskMarks
from lingu_ray.evaluation.contamination.rows import look_in_corpus
from lingu_ray.evaluation.tasks.task import Item, Task
from lingu_ray.runtime.run_folder.folder import RunFolder

log = logging.getLogger(__name__)


def look_for_items(config: Config, tasks: Sequence[Task], folder: RunFolder | None, corpus: Corpus) -> None:
    """Look for evaluation items in the rows that a run reads, unless it was done; warn of what is found, and record it.

    Args:
        config: the run, or a trial of a sweep.
        tasks: those of its evaluation.
        folder: gets `contamination.json`; None: nothing is recorded.
        corpus: what it trains on.
    """
    asked = [task for task in tasks if task.config in config.evaluation.tasks]  # and not again without their images
    if not asked:
        return
    rows = min(len(corpus), config.train.steps * config.train.rows_per_step)
    before = {} if folder is None else read_found(folder)
    now = {task.config.name: (task.asked, corpus.manifest["fingerprint"], rows, RULES) for task in asked}
    if {name: (one.asked, one.corpus, one.rows, one.rules) for name, one in before.items()} == now:
        found = before
    else:
        found = find_items(corpus, rows, asked)
        if folder is not None:
            write_found(found, folder)
    if said := [one.said(name) for name, one in found.items() if one.found]:
        log.warning(
            "%s: what is scored is trained on: %s. Such scores show memory: take the rows out of the data, or the "
            "items out of the tasks",
            *(config.name, "; ".join(said)),
        )


def find_items(corpus: Corpus, rows: int, tasks: Sequence[Task]) -> dict[str, Found]:
    """Look for the tasks' items in the first `rows` rows of a corpus; results by task. Ray must be running."""
    of_tasks = [TaskMarks(task) for task in tasks]
    marks = [one.marks for one in of_tasks]
    pictures = frozenset[str]().union(*(one.pictures for one in marks))
    runs = np.unique(np.concatenate([one.runs for one in marks]))
    places = look_in_corpus(corpus, rows, Marks(pictures, runs))
    mark = corpus.manifest["fingerprint"]
    return {one.task.config.name: _found(one, mark, rows, list(one.found(places))) for one in of_tasks}


def _found(marks: TaskMarks, corpus: str, rows: int, hits: Sequence[tuple[Item, Seen]]) -> Found:
    first = None
    if hits:
        item, seen = hits[0]
        first = f"item {item.name} in row {seen.row}, source {seen.source}"
    return Found(marks.task.asked, len(marks.task.items), corpus, rows, len(hits), first, RULES)
