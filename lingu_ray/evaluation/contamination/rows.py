"""Looking for marks in the rows that a run reads of its corpus, shard by shard, in tasks of Ray."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayTaskError

from lingu_ray.corpus.images import pixels_identity_of
from lingu_ray.corpus.row import PLACEHOLDER, Messages, Row, is_target
from lingu_ray.corpus.store import Corpus
from lingu_ray.errors import user_error
from lingu_ray.evaluation.contamination.items import Marks, Seen
from lingu_ray.evaluation.contamination.words import word_runs
from lingu_ray.live import LiveLine
from lingu_ray.waiting import RAY_STATUS, waiting

AT_ONCE = 256
"""Shards that are begun before the first of them is done with: more would be a burden on the driver."""
Places = dict[str | int, Seen]
"""Where marks were seen: pictures by identity, words in a row by hash."""


def look_in_corpus(corpus: Corpus, rows: int, marks: Marks) -> Places:
    """Where marks stand in the first `rows` rows of a corpus. Ray must be running.

    Raises:
        UserError: the corpus is damaged.
    """
    size: int = corpus.manifest["rows_per_shard"]
    shards = [range(begin, min(rows, begin + size)) for begin in range(0, rows, size)]
    look: Any = ray.remote(_look_in_shard)
    wanted, places = ray.put(marks), Places()
    begun = (look.remote(corpus.folder, shard, wanted) for shard in shards)
    looking = deque(islice(begun, AT_ONCE))
    with LiveLine("looking for evaluation items in the corpus", len(shards), "shard", keep=False) as line:
        for done in range(1, len(shards) + 1):
            try:
                with waiting("a shard in which evaluation items are looked for", RAY_STATUS):
                    found: Places = ray.get(looking.popleft())
            except RayTaskError as error:
                raise user_error(error) or error from None
            for mark, seen in found.items():
                places.setdefault(mark, seen)
            looking.extend(islice(begun, 1))
            line.show(done)
    return places


def _look_in_shard(folder: Path | str, positions: range, marks: Marks) -> Places:
    corpus = Corpus(folder)
    return look_in_rows(map(corpus.row, positions), marks)


def look_in_rows(rows: Iterable[Row], marks: Marks) -> Places:
    """Where marks stand in rows."""
    places = Places()
    sides = {frozenset(map(int, picture.split(" ")[0].split("x"))) for picture in marks.pictures}
    for row in rows:
        pictures = {pixels_identity_of(image, sides) for image in row.images} if sides else set()
        found: set[str | int] = set(marks.pictures.intersection(pictures))
        for text in texts_of(row.messages) if len(marks.runs) else ():
            runs = word_runs(text)
            nearest = marks.runs[np.searchsorted(marks.runs, runs).clip(max=len(marks.runs) - 1)]
            found.update(runs[nearest == runs].tolist())
        for mark in found:
            places.setdefault(mark, Seen(row.source, row.position))
    return places


def texts_of(messages: Messages) -> Iterator[str]:
    """Question and answer of each turn that is a target, as one text."""
    question = ""
    for message in messages:
        if is_target(message):
            yield f"{question} {message['content']}".replace(PLACEHOLDER, " ")
        elif message["role"] == "user":
            question = message["content"]
