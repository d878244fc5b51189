"""Evaluation items looked for in a corpus on disk, by tasks of Ray, shard by shard."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from lingu_ray.config import TaskConfig
from lingu_ray.corpus.store import ROW_SCHEMA, Corpus, shard_name, write_rows
from lingu_ray.errors import UserError
from lingu_ray.evaluation.contamination import rows as looking
from lingu_ray.evaluation.contamination.find import find_items
from lingu_ray.evaluation.tasks.load import load_task

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

ROWS, PER_SHARD = 47, 10


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Five shards of sums, of which the last is not full."""
    records = [
        {
            "source": "sums",
            "position": position,
            "messages": [
                {"role": "user", "content": f"What is {position} and {position}?"},
                {"role": "assistant", "content": f"It is {2 * position}."},
            ],
            "images": [],
            "distill": True,
        }
        for position in range(ROWS)
    ]
    for begin in range(0, ROWS, PER_SHARD):
        table = pa.Table.from_pylist(records[begin : begin + PER_SHARD], ROW_SCHEMA)
        write_rows(table, tmp_path / shard_name(begin // PER_SHARD))
    manifest = {"rows": ROWS, "rows_per_shard": PER_SHARD, "fingerprint": "sums", "sources": {"sums": {}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return Corpus(tmp_path)


def test_all_rows_that_are_read_and_no_others(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many shards are looked through at a time; a shard that cannot be read is an error that names it."""
    items = [{"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}"} for i in range(0, 100, 5)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    settings = {"name": "asked", "kind": "language", "type": "exact_match", "path": str(tmp_path / "items.jsonl")}
    task = load_task(TaskConfig.model_validate(settings))
    for rows, at_once in ((ROWS, 256), (ROWS, 2), (31, 2), (3, 1)):
        monkeypatch.setattr(looking, "AT_ONCE", at_once)
        found = find_items(corpus, rows, [task])["asked"]
        assert (found.rows, found.items, found.found) == (rows, 20, len(range(0, rows, 5)))
        assert found.first == "item 1 in row 0, source sums"
    (tmp_path / shard_name(2)).write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"shard-00002\.parquet is damaged"):
        find_items(corpus, ROWS, [task])
