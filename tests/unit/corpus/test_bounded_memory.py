"""Files of any size are read in memory that is bounded."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lingu_ray.corpus.readers import FileSplit


def test_a_row_group_is_not_read_whole(tmp_path: Path) -> None:
    """Of 64 MB of pictures, as pandas writes them into one row group, a page of 16 MB is in memory with its rows."""
    pictures = pa.array([os.urandom(16 << 10) for _ in range(4096)], pa.binary())
    pq.write_table(pa.table({"image": pictures}), tmp_path / "a.parquet", use_dictionary=False)
    before = pa.total_allocated_bytes()
    records = FileSplit("parquet", str(tmp_path / "a.parquet"), 0, 1).records()
    allocated = [pa.total_allocated_bytes() - before for _ in records]
    assert len(allocated) == 4096 and max(allocated) < 48 << 20
