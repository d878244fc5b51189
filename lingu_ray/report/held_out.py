"""Sample answers to held-out questions during training, side by side, with the questions' images."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from lingu_ray.corpus.store import VALIDATION_FILE, existing_file
from lingu_ray.evaluation.tasks.blind import without_placeholders
from lingu_ray.evaluation.thumbnail import data_uri, thumbnail
from lingu_ray.report.plots import display_name
from lingu_ray.report.samples import Answered, Answers
from lingu_ray.runtime.run_folder.records import Record

Key = tuple[str, int]
"""A held-out row: its source, and its position among the source's held-out rows."""


def held_out_answers(runs: dict[str, list[Record]], corpus: Path | str | None) -> Answers | None:
    """Each sampled question with the run's first and last answer and the controls' last ones; None without samples.

    Args:
        runs: records of `samples.jsonl` by model: the run first, then its controls.
        corpus: folder of the corpus, which has the questions' images; None: no images.
    """
    (own, records), *others = runs.items()
    if not records:
        return None
    first, last = records[0]["step"], records[-1]["step"]
    headings = {first: f"step {first}", last: f"{display_name(own)}, step {last}"}
    questions = {_key(record): record for record in records}
    answers: dict[Key, dict[str, str]] = {key: {} for key in questions}
    for record in records:
        if (heading := headings.get(record["step"])) and _asks_same(record, questions):
            answers[_key(record)][heading] = record["answer"]
    for model, of_other in others:
        for record in of_other:
            if _asks_same(record, questions) and (of_question := answers[_key(record)]):
                of_question[display_name(model)] = record["answer"]
    images = _thumbnails(corpus, set(answers)) if corpus is not None else {}
    rows = [
        Answered(
            record["source"],
            without_placeholders(record["question"]),
            images.get(key, []),
            record["expected"],
            answers[key],
        )
        for key, record in questions.items()
    ]
    return Answers(rows, list(dict.fromkeys(heading for row in rows for heading in row.answers)), headings[last])


def _key(record: Record) -> Key:
    return record["source"], record["position"]


def _asks_same(record: Record, questions: dict[Key, Record]) -> bool:
    """Whether a record's question is the one with its key; it is another one where the data changed during the run."""
    known = questions.get(_key(record))
    return known is not None and known["question"] == record["question"]


def _thumbnails(corpus: Path | str, keys: set[Key]) -> dict[Key, list[str]]:
    """The rows' images as `data:` URLs; none where the corpus was deleted."""
    path = existing_file(corpus, VALIDATION_FILE)
    if path is None:
        return {}
    sources, positions = (list(column) for column in zip(*keys, strict=True))
    wanted = pc.field("source").isin(sources) & pc.field("position").isin(positions)
    rows = pq.read_table(path, columns=["source", "position", "images"], filters=wanted).to_pylist()
    return {_key(row): [data_uri(thumbnail(image)) for image in row["images"]] for row in rows if _key(row) in keys}
