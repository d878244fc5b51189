"""Columns of pickled objects in Arrow and parquet files: nothing in them is run, also in processes with Ray Data."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

READ = """
from lingu_ray.corpus.readers import FileSplit
import ray.data
for kind in ("parquet", "arrow"):
    [(_, record)] = FileSplit(kind, f"data.{kind}", 0, 1).records()
    assert record["text"] == "Hello." and type(record["object"]) is bytes, record
"""
READ_WITH_RAY_FIRST = "import ray.data\n" + READ


class Creates:
    """What creates a file as it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("code", [READ, READ_WITH_RAY_FIRST], ids=["readers first", "Ray Data first"])
def test_no_column_is_unpickled(tmp_path: Path, code: str) -> None:
    """A column that Ray Data would unpickle is read as bytes, in whichever order the two are imported."""
    created = tmp_path / "created"
    marks = {"ARROW:extension:name": "ray.data.arrow_pickled_object", "ARROW:extension:metadata": ""}
    schema = pa.schema([pa.field("text", pa.string()), pa.field("object", pa.large_binary(), metadata=marks)])
    table = pa.table({"text": ["Hello."], "object": [pickle.dumps(Creates(created))]}, schema)
    pq.write_table(table, tmp_path / "data.parquet")
    with pa.ipc.new_file(tmp_path / "data.arrow", schema) as writer:
        writer.write_table(table)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert not created.exists()
