"""A corpus in a bucket of a real S3 server, read by the workers of a node."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from buckets import proxy_before

from lingu_ray import storage
from lingu_ray.corpus.store import ROW_SCHEMA, Corpus, corpus_file, existing_file, shard_name, write_rows, writing
from lingu_ray.errors import UserError

pytestmark = pytest.mark.slow

ROWS, PER_SHARD = 250, 100
WORKER = """
import sys
from lingu_ray.corpus.store import Corpus
corpus, rank = Corpus(sys.argv[1]), int(sys.argv[2])
rows = [corpus.rows([position])[0] for position in range(rank, len(corpus), 2)]
print(sum(row.position for row in rows), len(corpus.validation()["s"]))
"""


def write_corpus(folder: Path | str) -> dict[str, int]:
    """Write a corpus as the build does, with images that do not compress; returns the bytes of its files."""
    noise = random.Random(0)
    turns = [{"role": "user", "content": "<image>q"}, {"role": "assistant", "content": "a"}]
    records = [
        {"source": "s", "position": p, "messages": turns, "images": [noise.randbytes(20_000)], "distill": True}
        for p in range(ROWS)
    ]
    files = {shard_name(i // PER_SHARD): records[i : i + PER_SHARD] for i in range(0, ROWS, PER_SHARD)}
    sizes = {}
    for name, rows in (files | {"validation.parquet": records[:3]}).items():
        with writing(folder, name) as path:
            write_rows(pa.Table.from_pylist(rows, ROW_SCHEMA), path)
            sizes[name] = path.stat().st_size
    manifest = {"rows": ROWS, "rows_per_shard": PER_SHARD, "sources": {"s": {}}}
    for name, content in {"bytes.json": sizes, "manifest.json": manifest}.items():
        with writing(folder, name) as path:
            path.write_text(json.dumps(content))
    return sizes


@pytest.mark.parametrize("bucket", ["s3", "gs"], indirect=True)
def test_rows_are_those_of_the_local_corpus(bucket: str, tmp_path: Path):
    """The same files, the same rows, the same held-out rows; each file is a copy on this node."""
    (tmp_path / "local").mkdir()
    local_sizes, sizes = write_corpus(tmp_path / "local"), write_corpus(bucket)
    local, remote = Corpus(tmp_path / "local"), Corpus(bucket)
    assert sizes == local_sizes and remote.manifest == local.manifest
    assert remote.rows(range(ROWS)) == local.rows(range(ROWS)) and remote.validation() == local.validation()
    for name in sizes:
        assert corpus_file(bucket, name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    assert existing_file(bucket, "none") is None and existing_file(tmp_path, "none") is None


def test_a_node_reads_a_corpus_once(bucket: str, storage_servers: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    """Two workers that read every second row each make the server send at most 1.1 times the corpus."""
    size = sum(write_corpus(bucket).values())
    with proxy_before(storage_servers["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        command = [sys.executable, "-c", WORKER, bucket]
        workers = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(2)]
        printed = [worker.communicate(timeout=300)[0].split() for worker in workers]
    assert sum(int(positions) for positions, _ in printed) == sum(range(ROWS))
    assert size <= proxy.sent <= 1.1 * size


def test_damage_is_told_on_opening(bucket: str):
    """A shard that was cut off or is missing, no manifest: before any row is read, with the location and the cure."""
    write_corpus(bucket)
    shard = f"{bucket}/{shard_name(1)}"
    storage.put(storage.read_bytes(shard)[:-20], shard)
    with pytest.raises(UserError, match=f"corpus {bucket}: shard-00001.parquet is damaged; delete the corpus"):
        Corpus(bucket).check_files()
    storage.delete(shard)
    with pytest.raises(UserError, match=f"corpus {bucket}: shard-00001.parquet is missing; delete the corpus"):
        Corpus(bucket).check_files()
    storage.delete(f"{bucket}/manifest.json")
    with pytest.raises(UserError, match=f"{bucket}/manifest.json: there is no such object"):
        Corpus(bucket)
