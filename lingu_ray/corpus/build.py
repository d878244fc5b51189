"""Building a corpus with Ray Data: read, normalize, check, quarantine, order, write.

    file splits ─► rows and rejects (tasks) ─► rows of each split (driver) ─► positions, shards (tasks)

Every row has a key (its file split and its number in it) that depends on the files alone. Its positions are computed
from that, so any number of blocks, tasks or nodes gives the same corpus, and the driver holds counts and rejects, but
no list of rows. The corpus is written to a temporary folder that is renamed when complete; into a bucket with the
manifest last, and two who write the same corpus there write the same.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data.context import DataContext, ShuffleStrategy
from ray.exceptions import RayTaskError

from lingu_ray import storage
from lingu_ray.atomic import whole_folder
from lingu_ray.config import Config
from lingu_ray.corpus.counts import checked_counts, good_rows, merged, summary, tally
from lingu_ray.corpus.fingerprint import source_content
from lingu_ray.corpus.finished import FinishedSplits
from lingu_ray.corpus.normalize import NORMALIZED, SplitTask
from lingu_ray.corpus.order import VALIDATION, GlobalOrder, doubts, draw_order
from lingu_ray.corpus.plan import Plan, plan_corpus
from lingu_ray.corpus.store import (
    MANIFEST,
    ROW_SCHEMA,
    SIZES,
    VALIDATION_FILE,
    VERSION,
    Corpus,
    is_built,
    shard_name,
    write_rows,
    writing,
)
from lingu_ray.errors import UserError, user_error

log = logging.getLogger(__name__)

LOG_WHAT_THEY_RAISE = ("ray.data.exceptions", "ray.data._internal.execution.streaming_executor_state")
REJECTED = ["source", "reason", "origin", "excerpt"]
META = ["key", "truncated", *REJECTED]


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
        corpus = Corpus(folder)
        corpus.check_files()
        return corpus
    try:
        with whole_folder(folder, keep_existing=True) if isinstance(folder, Path) else nullcontext(folder) as building:
            _build(plan, building)
    except RayTaskError as error:
        if (found := user_error(error)) is not None:
            raise found from None
        raise
    corpus = Corpus(folder)
    for line in summary(corpus):
        log.info(line)
    return corpus


def _build(plan: Plan, folder: Path | str) -> None:
    corpus, sources = plan.config, plan.sources
    with DataContext.current(_data_context()):
        normalized = normalize(plan.tasks, folder)
        tallies = merged(_to_table(normalized.select_columns(META).map_batches(tally, batch_format="pyarrow")))
        counts = checked_counts(tallies, corpus, sources)
        _write_rejects(normalized if any(of_source["rejected"] for of_source in counts.values()) else None, folder)
        order = draw_order(corpus, sources, good_rows(tallies, sources))
        for doubt in doubts(corpus, order):
            log.warning("corpus: %s", doubt)
        log.info("corpus: writing %d rows", order.written)
        sizes = write_shards(normalized, order, folder)
    with writing(folder, SIZES) as path:
        path.write_text(json.dumps(sizes, indent=0))
    _check_unchanged(plan)
    manifest = {
        "version": VERSION,
        "fingerprint": plan.fingerprint,
        "rows": order.rows,
        "rows_per_shard": corpus.rows_per_shard,
        "seed": corpus.seed,
        "max_length": corpus.max_length,
        "sources": {s.name: counts[s.name] | order.used(s.name) | {"distill": s.language_heavy} for s in sources},
    }
    with writing(folder, MANIFEST) as path:
        path.write_text(json.dumps(manifest, indent=2))


def _check_unchanged(plan: Plan) -> None:
    """Raise UserError where data have changed since they were planned: what was read may be of neither version."""
    for source in plan.sources:
        splits = [task.split for task in plan.tasks if task.source.name == source.name]
        if source_content(source, splits) != plan.contents[source.name]:
            raise UserError(
                f"source {source.name}: its data changed while the corpus was built of them: run the same command "
                "again when nothing writes them"
            )


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
    finished = FinishedSplits(storage.below(folder, ".done"))

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


def _write_rejects(normalized: ray.data.Dataset | None, folder: Path | str) -> None:
    """Write `rejected/`, in the order of the files; without rows there are no rejects."""
    rejects = pa.schema([NORMALIZED.field(name) for name in ("key", *REJECTED)]).empty_table()
    if normalized is not None:
        columns = normalized.select_columns(rejects.column_names)
        rejects = _to_table(columns.map_batches(_rejects, batch_format="pyarrow"))
    with writing(folder, "rejected/rejected.parquet") as path:
        pq.write_table(rejects.sort_by("key").select(REJECTED), path)


def _rejects(block: pa.Table) -> pa.Table:
    return block.filter(pc.field("reason").is_valid())


def write_shards(normalized: ray.data.Dataset, order: GlobalOrder, folder: Path | str) -> dict[str, int]:
    """Write all shards and the validation rows, one task per file; returns the bytes of each by name, sorted.

    Raises:
        RuntimeError: fewer or more rows were written than the order has.
    """
    order_ref = ray.put(order)
    sizes = {VALIDATION_FILE: _write(ROW_SCHEMA.empty_table(), folder, VALIDATION_FILE)}  # where no row is held out

    def assign(table: pa.Table) -> Iterator[pa.Table]:
        yield from ray.get(order_ref).assign(table)

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
    if rows != order.written:
        raise RuntimeError(f"{folder}: {rows} rows written, {order.written} expected")
    return dict(sorted((sizes | {file["name"]: file["bytes"] for file in written}).items()))


def _write(table: pa.Table, folder: Path | str, name: str) -> int:
    """Write a file of rows; returns its bytes."""
    with writing(folder, name) as path:
        write_rows(table, path)
        return path.stat().st_size
