"""Files of any size are read in memory that is bounded."""

import gzip
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lingu_ray.config import SourceConfig
from lingu_ray.corpus import compression, csv_records, json_array, readers
from lingu_ray.corpus.readers import FileSplit
from lingu_ray.corpus.splits import check_source, split_source
from lingu_ray.errors import UserError


def source(path: Path) -> SourceConfig:
    return SourceConfig(name="s", format="prompt_completion", path=str(path))


def peak_of(use: Callable[[], object]) -> int:
    """The most bytes that Python had allocated meanwhile."""
    tracemalloc.start()
    use()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_a_row_group_is_not_read_whole(tmp_path: Path) -> None:
    """Of 64 MB of pictures, as pandas writes them into one row group, a page of 16 MB is in memory with its rows."""
    pictures = pa.array([os.urandom(16 << 10) for _ in range(4096)], pa.binary())
    pq.write_table(pa.table({"image": pictures}), tmp_path / "a.parquet", use_dictionary=False)
    before = pa.total_allocated_bytes()
    records = FileSplit("parquet", str(tmp_path / "a.parquet"), 0, 1).records()
    allocated = [pa.total_allocated_bytes() - before for _ in records]
    assert len(allocated) == 4096 and max(allocated) < 48 << 20


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_a_json_array_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """To find its records, and to read them, on one line or compressed, a few parts of it are in memory."""
    monkeypatch.setattr(json_array, "LINES_BYTES", 64 << 10)
    records = [{"prompt": f"q{i}", "completion": "a" * 1000} for i in range(8000)]
    written = json.dumps(records).encode()
    (tmp_path / name).write_bytes(gzip.compress(written, 1) if name.endswith(".gz") else written)
    read = []

    def use() -> None:
        for split in split_source(source(tmp_path / name)):
            read.extend(record == records[number - 1] for number, record in split.records())

    peak = peak_of(use)
    assert read == [True] * 8000 and peak < len(written) // 4


def test_json_in_one_piece_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object over many lines, an array in UTF-16, and a record without an end."""
    one = {"prompt": "q", "completion": "a" * 1000}
    (tmp_path / "object.json").write_text(json.dumps(one, indent=1))
    (tmp_path / "array.json").write_text(json.dumps([one]), encoding="utf-16")
    (tmp_path / "record.json").write_text(json.dumps([one, one]))
    for path in tmp_path.iterdir():
        check_source(source(path), split_source(source(path)))
    for module in (compression, json_array, readers):
        monkeypatch.setattr(module, "RECORD_BYTES", 500)
    monkeypatch.setattr(json_array, "LINES_BYTES", 100)
    in_record = r"Unterminated string starting at \(byte 31\), or more than 500 bytes in one record"
    in_one = "more than 500 bytes of JSON in one piece"
    for name, told in (("object", in_one), ("array", in_one), ("record", in_record)):
        path = tmp_path / f"{name}.json"
        with pytest.raises(UserError, match=f"source s: .*{name}.json cannot be read: .*{told}"):
            check_source(source(path), split_source(source(path)))


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("q," + "a" * 1000, "line 2 has more than 500 characters"),
        (
            '"q' + "\na" * 600 + '",b',
            "line 2 begins a row with a field larger than field limit",
        ),
    ],
)
def test_a_csv_row_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str, told: str) -> None:
    """A line without an end, and a quote that is closed far behind: the rest of the file would be a field of it."""
    (tmp_path / "a.csv").write_text(f"prompt,completion\n{row}\n")
    check_source(source(tmp_path), split_source(source(tmp_path)))
    monkeypatch.setattr(csv_records, "RECORD_BYTES", 500)
    with pytest.raises(UserError, match=f"source s: .*a.csv cannot be read: {told}"):
        check_source(source(tmp_path), split_source(source(tmp_path)))
