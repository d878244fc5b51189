"""How often the workers of a run together read a corpus: bytes counted on files, against `benchmarks.scaling`'s model.

    python -m benchmarks.readings readers=1,16,256 rows_per_step=1024,4096 out=docs/scaling

A made-up corpus is read once by each number of readers. They have a cache each, and run one after another in this
process, which counts the bytes that it reads (/proc/self/io). Linux only.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pyarrow as pa
from pydantic import Field, PositiveInt
from tqdm import tqdm

from benchmarks.report import BenchmarkConfig, Row, publish
from benchmarks.scaling import readings
from lingu_ray.config import Several
from lingu_ray.config.command_line import settings_alone
from lingu_ray.config.help_pages import Help
from lingu_ray.corpus.read import rows_of_rank
from lingu_ray.corpus.store import MANIFEST, ROW_GROUP, ROW_SCHEMA, Corpus, shard_name, write_rows
from lingu_ray.errors import run_command


class ReadingsConfig(BenchmarkConfig):
    """Settings of the benchmark."""

    readers: Several[PositiveInt] = Field((1, 4, 16, 64, 256), description="numbers of workers")
    rows_per_step: Several[PositiveInt] = Field((1024, 4096), description="as train.rows_per_step")
    rows: PositiveInt = Field(8192, description="rows of the corpus; whole steps of it are read")
    row_bytes: PositiveInt = Field(3000, description="bytes of a row's image")
    rows_per_shard: PositiveInt = Field(4096, description="as corpus.rows_per_shard")


HELP = Help("python -m benchmarks.readings [key=value ...]", __doc__, ReadingsConfig)


def main(arguments: list[str]) -> None:
    """Count and publish."""
    options = settings_alone(arguments, HELP)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        corpus = made_up(Path(folder), options)
        for rows_per_step in options.rows_per_step:
            for readers in tqdm(options.readers, leave=False, disable=None):
                counted, model = times_read(corpus, readers, rows_per_step), readings(readers, rows_per_step, ROW_GROUP)
                rows.append({"rows_per_step": rows_per_step, "readers": readers, "counted": counted, "model": model})
    publish("readings", rows, options.out, options.recorded)


def made_up(folder: Path, options: ReadingsConfig) -> Corpus:
    """A corpus of rows with images of noise."""
    turns = [{"role": "user", "content": "<image>What is this?"}, {"role": "assistant", "content": "Noise."}]
    for start in range(0, options.rows, options.rows_per_shard):
        positions = range(start, min(start + options.rows_per_shard, options.rows))
        row = {"source": "noise", "messages": turns, "distill": True}
        records = [row | {"position": place, "images": [os.urandom(options.row_bytes)]} for place in positions]
        write_rows(pa.Table.from_pylist(records, ROW_SCHEMA), folder / shard_name(start // options.rows_per_shard))
    manifest = {"rows": options.rows, "rows_per_shard": options.rows_per_shard, "sources": {"noise": {}}}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return Corpus(folder)


def times_read(corpus: Corpus, readers: int, rows_per_step: int) -> float:
    """Bytes that all readers together read in one pass, over the bytes of the corpus's shards."""
    size = sum(path.stat().st_size for path in Path(corpus.folder).glob("shard-*"))
    before = _read_bytes()
    for rank in range(readers):
        own = Corpus(corpus.folder)
        for step in range(len(own) // rows_per_step):
            own.rows([step * rows_per_step + row for row in rows_of_rank(rows_per_step, rank, readers)])
    return (_read_bytes() - before) / size


def _read_bytes() -> int:
    return int(
        dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="utf-8").splitlines())["rchar"]
    )


if __name__ == "__main__":
    run_command(main)
