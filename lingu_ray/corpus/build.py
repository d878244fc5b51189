"""Building a corpus with Ray Data: read, normalize, check, quarantine, order, write.

    file splits ─► rows and rejects (tasks) ─► positions in the global order (driver) ─► shards (tasks)

Every row has a key (its file split and its index in it) that depends on the files alone. The order is drawn over the
sorted keys, so any number of blocks, tasks or nodes gives the same corpus. It is written to a temporary folder that is
renamed when complete; into a bucket with the manifest last, and two who write the same corpus there write the same.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data.context import DataContext, ShuffleStrategy
from ray.exceptions import RayTaskError

from lingu_ray import storage
from lingu_ray.atomic import whole_folder
from lingu_ray.config import Config, CorpusConfig, SourceConfig
from lingu_ray.corpus.fingerprint import fingerprint, source_content
from lingu_ray.corpus.finished import FinishedSplits
from lingu_ray.corpus.mix import IntArray
from lingu_ray.corpus.normalize import SplitTask, load_encoder
from lingu_ray.corpus.order import VALIDATION, GlobalOrder, draw_order
from lingu_ray.corpus.readers import FileSplit
from lingu_ray.corpus.splits import check_source, image_folder, split_source
from lingu_ray.corpus.store import (
    MANIFEST,
    ROW_SCHEMA,
    VALIDATION_FILE,
    Corpus,
    is_built,
    shard_name,
    write_rows,
    writing,
)
from lingu_ray.errors import UserError

log = logging.getLogger(__name__)

LOG_WHAT_THEY_RAISE = ("ray.data.exceptions", "ray.data._internal.execution.streaming_executor_state")
MUCH_HELD_OUT = 0.2  # share of a source's rows above which the summary mentions it
REJECTED = ["source", "reason", "origin", "excerpt"]
META = ["key", "truncated", *REJECTED]


@dataclass(frozen=True)
class Plan:
    """What a corpus is made of, and the folder where it is or will be.

    `contents`: by source, the fingerprint of its data.
    """

    config: CorpusConfig
    sources: tuple[SourceConfig, ...]
    tasks: list[SplitTask]
    contents: dict[str, str]
    fingerprint: str
    folder: Path | str


def plan_corpus(config: Config, processor_dir: Path) -> Plan:
    """Find the data of the training sources and plan the corpus made of it. Needs no Ray.

    Args:
        config: the run.
        processor_dir: folder of the student's saved processor.

    Raises:
        UserError: data that is not found, has no records, or cannot be read; a chat template that no row could be
            trained with.
    """
    load_encoder(str(processor_dir.absolute()), config.corpus.max_length)
    sources = config.training_sources()
    splits = [split_source(source) for source in sources]
    for source, of_source in zip(sources, splits, strict=True):
        check_source(source, of_source)
    contents = {s.name: source_content(s, of_source) for s, of_source in zip(sources, splits, strict=True)}
    mark = fingerprint(config.corpus, sources, contents, processor_dir)
    tasks = split_tasks(config, sources, splits, processor_dir)
    folder = storage.place(storage.below(str(config.corpora_dir), mark))
    return Plan(config.corpus, sources, tasks, contents, mark, folder)


def build_corpus(config: Config, processor_dir: Path) -> Corpus:
    """Plan the corpus of the training sources, and find or build it (errors as `build_planned`)."""
    return build_planned(plan_corpus(config, processor_dir))


def build_planned(plan: Plan) -> Corpus:
    """Open the planned corpus if it exists, else build it. Ray must be running.

    Raises:
        UserError: a source with too many bad rows or too few good ones.
    """
    folder = plan.folder
    if is_built(folder):
        log.info("corpus %s: found, built before", folder)
        return Corpus(folder)
    try:
        with whole_folder(folder, keep_existing=True) if isinstance(folder, Path) else nullcontext(folder) as building:
            _build(plan, building)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
    corpus = Corpus(folder)
    for line in summary(corpus):
        log.info(line)
    return corpus


def split_tasks(
    config: Config, sources: tuple[SourceConfig, ...], splits: list[list[FileSplit]], processor_dir: Path
) -> list[SplitTask]:
    """One task for each file split of each source, numbered."""
    processor, length = str(storage.origin(processor_dir.absolute())), config.corpus.max_length
    pairs = [(source, split) for source, of_source in zip(sources, splits, strict=True) for split in of_source]
    tasks = []
    for index, (source, split) in enumerate(pairs):
        tasks.append(SplitTask(index, split, source, image_folder(source, split), processor, length))
    return tasks


def _build(plan: Plan, folder: Path | str) -> None:
    corpus, sources = plan.config, plan.sources
    with DataContext.current(_data_context()):
        normalized = normalize(plan.tasks, folder)
        log.info("corpus: ordering and writing %d rows", normalized.count())
        meta = _to_table(normalized.select_columns(META))
        counts = quarantine(meta, corpus, sources, folder)
        order = draw_order(corpus, sources, _keys(meta, sources))
        sizes = write_shards(normalized, order, folder)
    manifest = {
        "fingerprint": plan.fingerprint,
        "rows": order.rows,
        "rows_per_shard": corpus.rows_per_shard,
        "seed": corpus.seed,
        "max_length": corpus.max_length,
        "sources": {s.name: counts[s.name] | order.used[s.name] | {"distill": s.language_heavy} for s in sources},
        "bytes": sizes,
    }
    with writing(folder, MANIFEST) as path:
        path.write_text(json.dumps(manifest, indent=2))


def _keys(meta: pa.Table, sources: tuple[SourceConfig, ...]) -> dict[str, IntArray]:
    """Sorted keys of each source's good rows."""
    good = meta.filter(pc.field("reason").is_null())
    return {s.name: good.filter(pc.field("source") == s.name)["key"].sort().to_numpy() for s in sources}


def _data_context() -> DataContext:
    """Ray Data's settings. Groups are made by sorting: the default starts actors, slower than a small build."""
    context = DataContext.get_current().copy()
    context.shuffle_strategy = ShuffleStrategy.SORT_SHUFFLE_PULL_BASED
    context.enable_progress_bars = False  # LiveLine shows progress
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    for name in LOG_WHAT_THEY_RAISE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return context


def normalize(tasks: list[SplitTask], folder: Path | str) -> ray.data.Dataset:
    """Rows and rejects of all file splits, unordered, in the object store; tasks report progress through `folder`."""
    indices = ray.data.from_items([{"task": index} for index in range(len(tasks))], override_num_blocks=len(tasks))
    tasks_ref = ray.put(tasks)
    finished = FinishedSplits(storage.place(storage.below(str(folder), ".done")))

    def read(batch: pa.Table) -> Iterator[pa.Table]:
        for index in batch["task"].to_pylist():
            rows = 0
            for table in ray.get(tasks_ref)[index].tables():
                rows += len(table)
                yield table
            finished.add(index, rows)

    with finished.shown(len(tasks)):
        return indices.map_batches(read, batch_size=1, batch_format="pyarrow").materialize()


def _to_table(dataset: ray.data.Dataset) -> pa.Table:
    return pa.concat_tables(ray.get(dataset.to_arrow_refs()))


def quarantine(
    meta: pa.Table, corpus: CorpusConfig, sources: tuple[SourceConfig, ...], folder: Path | str
) -> dict[str, dict[str, Any]]:
    """Write `rejected/` and return counts by source: read, accepted, truncated, rejected by reason.

    Raises:
        UserError: more than `max_reject_rate` of a source is bad.
    """
    bad = meta.filter(pc.field("reason").is_valid()).sort_by("key")
    counts = {}
    for source in sources:
        of_source = meta.filter(pc.field("source") == source.name)
        rejected = bad.filter(pc.field("source") == source.name)
        reasons = dict(Counter(rejected["reason"].to_pylist()).most_common())
        if len(rejected) > corpus.max_reject_rate * len(of_source):
            raise UserError(_too_many_bad(source.name, len(of_source), reasons, rejected, corpus.max_reject_rate))
        counts[source.name] = {
            "read": len(of_source),
            "accepted": len(of_source) - len(rejected),
            "truncated": of_source["truncated"].to_pylist().count(True),
            "rejected": reasons,
        }
    with writing(folder, "rejected/rejected.parquet") as path:
        pq.write_table(bad.select(REJECTED), path)
    return counts


def _too_many_bad(name: str, read: int, reasons: dict[str, int], rejected: pa.Table, limit: float) -> str:
    firsts = {row["reason"]: row for row in reversed(rejected.to_pylist())}
    examples = "".join(
        f"\n  {count} × {reason}, first at {firsts[reason]['origin']}: {firsts[reason]['excerpt']}"
        for reason, count in reasons.items()
    )
    return (
        f"source {name}: {len(rejected)} of {read} rows ({len(rejected) / read:.1%}) are bad, more than "
        f"corpus.max_reject_rate={limit}:{examples}\n"
        "Fix the data, or raise corpus.max_reject_rate to leave these rows out"
    )


def write_shards(normalized: ray.data.Dataset, order: GlobalOrder, folder: Path | str) -> dict[str, int]:
    """Write all shards and the validation rows, one task per file; returns the bytes of each by name, sorted.

    Raises:
        RuntimeError: fewer or more rows were written than the order has.
    """
    order_ref = ray.put(order)
    sizes = {VALIDATION_FILE: _write(ROW_SCHEMA.empty_table(), folder, VALIDATION_FILE)}  # where no row is held out

    def assign(table: pa.Table) -> pa.Table:
        return ray.get(order_ref).assign(table)

    def write(table: pa.Table) -> pa.Table:
        shard = table["shard"][0].as_py()
        held_out = shard == VALIDATION
        table = table.sort_by([("source", "ascending"), ("position", "ascending")] if held_out else "position")
        name = VALIDATION_FILE if held_out else shard_name(shard)
        return pa.table({"name": [name], "rows": [len(table)], "bytes": [_write(table, folder, name)]})

    assigned = normalized.map_batches(assign, batch_format="pyarrow")
    files = assigned.groupby("shard").map_groups(write, batch_format="pyarrow")
    written = list(files.iter_rows())
    rows = sum(file["rows"] for file in written)
    if rows != len(order.keys):
        raise RuntimeError(f"{folder}: {rows} rows written, {len(order.keys)} expected")
    return dict(sorted((sizes | {file["name"]: file["bytes"] for file in written}).items()))


def _write(table: pa.Table, folder: Path | str, name: str) -> int:
    """Write a file of rows; returns its bytes."""
    with writing(folder, name) as path:
        write_rows(table, path)
        return path.stat().st_size


def summary(corpus: Corpus) -> list[str]:
    """Describe the corpus: a line for all of it and one for each source."""
    lines = [f"corpus {corpus.folder}: {len(corpus)} rows"]
    for name, counts in corpus.manifest["sources"].items():
        bad = sum(counts["rejected"].values())
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts["rejected"].items())
        lines.append(
            f"  {name}: {counts['read']} read, {bad} rejected{f' ({reasons})' if bad else ''}, "
            f"{counts['truncated']} truncated, {counts['validation']} held out for validation, "
            f"{counts['accepted'] - counts['validation']} to train on"
        )
        if counts["validation"] > MUCH_HELD_OUT * counts["accepted"]:
            lines.append(
                f"  {name}: corpus.validation_rows={counts['validation']} holds out {counts['validation']} of its "
                f"{counts['accepted']} rows; lower it to train on more"
            )
    return lines
