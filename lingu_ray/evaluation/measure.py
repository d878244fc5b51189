"""Run a task on one model, chunk by chunk, and write each chunk's answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lingu_ray.config.evaluation import CLUSTER
from lingu_ray.content import combined
from lingu_ray.evaluation.engines.engine import Answer, Score
from lingu_ray.evaluation.item_files import CUT_OFF, CUT_TO, SAMPLE, Parts, Stamp, items_path, read_columns, stamp_of
from lingu_ray.evaluation.metrics.metric import Columns
from lingu_ray.evaluation.replicas import Answers, Chunk, Replicas, Requests
from lingu_ray.evaluation.results import MANY_CUT_OFF
from lingu_ray.evaluation.tasks.task import Asked, Item, Scored, Task, images_of
from lingu_ray.evaluation.thumbnail import thumbnail
from lingu_ray.live import LiveLine

log = logging.getLogger(__name__)

CHUNK = 128  # items
SAMPLES = 12  # first items of a task whose question is kept, for the report


class TaskRun:
    """A task on one model: which of its items are answered, and which are not."""

    def __init__(self, task: Task, stamp: Stamp, model: str, out_dir: Path) -> None:
        self.task, self.stamp, self.model = task, stamp, model
        self.path = items_path(out_dir, task.config.name, model)
        self.parts = Parts(self.path, stamp)

    @property
    def finished(self) -> bool:
        """Whether all items are answered."""
        return stamp_of(self.path) == self.stamp

    @property
    def begun(self) -> bool:
        """Whether some items are answered."""
        return self.finished or bool(self.parts.answered())

    def chunks(self) -> Iterator[Chunk]:
        """The chunks that are not answered."""
        self.parts.drop_others()
        answered = self.parts.answered()
        for begin in range(0, len(self.task.items), CHUNK):
            if begin not in answered:
                yield Chunk(begin, lambda begin=begin: self._requests(begin))

    def keep(self, chunk: Chunk, answers: Answers) -> int:
        """Write a chunk's answers; returns its number of items."""
        items = self.task.items[chunk.begin : chunk.begin + CHUNK]
        columns = {"item": [item.name for item in items], **_clusters(items), **_references(items)}
        samples = [_sample(item) if chunk.begin + i < SAMPLES else None for i, item in enumerate(items)]
        self.parts.write(chunk.begin, {**columns, **_answered(items, answers), SAMPLE: samples})
        return len(items)

    def finish(self) -> None:
        """Join all chunks, and tell where many answers ended at the most tokens that they may have."""
        items, config = len(self.task.items), self.task.config
        self.parts.join(items)
        cut_off = sum(read_columns(self.path).get(CUT_OFF, ()))
        if cut_off > MANY_CUT_OFF * items:
            name = config.name.partition("@")[0]  # without images the settings are the task's own
            cure = "the task's own length" if config.type == "lm_eval" else f"raise tasks.{name}.max_new_tokens"
            log.warning(
                "%s: %s: %d of %d answers were cut off before they ended; what was not said yet counts as wrong: %s",
                *(self.model, config.name, cut_off, items, cure),
            )

    def _requests(self, begin: int) -> Requests:
        items = self.task.items[begin : begin + CHUNK]
        scored = [request for item in items if isinstance(item, Scored) for request in item.requests]
        return scored or [item.request(self.task.config) for item in items if isinstance(item, Asked)]


def run_task(run: TaskRun, replicas: Replicas) -> None:
    """Ask the model all items that are not answered, and write one file of all of them."""
    label, items = f"{run.model}: {run.task.config.name}", len(run.task.items)
    chunks = list(run.chunks())
    done = items - sum(min(CHUNK, items - chunk.begin) for chunk in chunks)
    begin, measured = time.perf_counter(), done
    with LiveLine(label, items, "item", done=done, keep=False) as line:
        for chunk, answers in replicas.answers(chunks):
            done += run.keep(chunk, answers)
            line.show(done)
    run.finish()
    log.info("%s: %d items, %.1f s", label, items - measured, time.perf_counter() - begin)


def _references(items: Sequence[Item]) -> Columns:
    return {name: [item.reference[name] for item in items] for name in items[0].reference}


def _clusters(items: Sequence[Item]) -> Columns:
    """The identity of each item's images, else of its question and right answer; none where an item has neither.

    The same question has the same in every task, whatever its white space. A cluster of the item's own takes its place.
    """
    shared = [[image.content for image in images_of(item)] or item.quotable for item in items]
    return {CLUSTER: [combined(" ".join(t.split()) for t in of_item) for of_item in shared]} if all(shared) else {}


def _answered(items: Sequence[Item], answers: Answers) -> Columns:
    """Answers in columns, an entry per item; where texts were scored, the entry is a list with an element per text."""
    if not isinstance(items[0], Scored):
        said = [answer for answer in answers if isinstance(answer, Answer)]
        return {"prediction": [answer.text for answer in said], CUT_OFF: [answer.cut_off for answer in said]}
    scores = iter(answer for answer in answers if isinstance(answer, Score))
    of_items = [[next(scores) for _ in item.requests] for item in items if isinstance(item, Scored)]
    return {
        "logliks": [[score.loglik for score in scores] for scores in of_items],
        "tokens": [[score.tokens for score in scores] for scores in of_items],
        "greedy": [[score.greedy for score in scores] for scores in of_items],
        CUT_TO: [[score.cut_to for score in scores] for scores in of_items],
    }


def _sample(item: Item) -> dict[str, Any]:
    """What was asked, readable by people: the text, the options that were scored after it, small images."""
    if isinstance(item, Asked):
        return {"asked": item.prompt, "options": [], "images": [thumbnail(read()) for read in item.images]}
    contexts, texts = zip(*((r.context, r.continuation) for r in item.requests), strict=True)
    same = len(set(contexts)) == 1
    return {"asked": contexts[0] if same else texts[0], "options": texts if same else contexts, "images": []}
