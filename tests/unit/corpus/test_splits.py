import io
import json
import tarfile
from pathlib import Path
from typing import Any, get_args

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import picture

from lingu_ray.config import Format, SourceConfig
from lingu_ray.corpus import splits
from lingu_ray.corpus.formats import FORMATS, BadRecord
from lingu_ray.corpus.splits import split_source
from lingu_ray.errors import UserError

RECORDS = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(10)]


def source(path: Path | str, format: Any = "prompt_completion", **settings) -> SourceConfig:
    return SourceConfig(name="s", format=format, path=str(path), **settings)


def read(settings: SourceConfig) -> list[tuple[int, Any]]:
    return [numbered for split in split_source(settings) for numbered in split.records()]


def write_lines(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_every_kind_of_file_gives_the_same_records(tmp_path):
    """JSONL, JSON lines named .json, a JSON array, parquet of row groups, save_to_disk with and without splits."""
    write_lines(tmp_path / "a.jsonl", RECORDS)
    write_lines(tmp_path / "lines.json", RECORDS)
    (tmp_path / "array.json").write_text(json.dumps(RECORDS, indent=1))
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "a.parquet", row_group_size=3)
    dataset = datasets.Dataset.from_list(RECORDS)
    dataset.save_to_disk(tmp_path / "saved", num_shards=2)
    datasets.DatasetDict({"train": dataset, "test": datasets.Dataset.from_list(RECORDS[:1])}).save_to_disk(
        tmp_path / "splits"
    )
    for name in ("a.jsonl", "lines.json", "array.json", "a.parquet", "splits"):
        assert read(source(tmp_path / name)) == list(enumerate(RECORDS, 1)), name
    assert [record for _, record in read(source(tmp_path / "saved"))] == RECORDS
    assert [record for _, record in read(source(tmp_path / "splits", split="test"))] == RECORDS[:1]


def test_hub_datasets_are_read_from_their_cache(tmp_path, monkeypatch):
    """What `load_dataset` fetches is read in full, images undecoded; a slice of a split is refused."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "owner" / "data").mkdir(parents=True)
    table = datasets.Dataset.from_list([{"image": {"bytes": picture(i), "path": None}} for i in range(5)])
    table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "owner" / "data" / "train.parquet")
    files = splits.hub_files(source("owner/data"))
    records = [record for path in files for _, record in read(source(path))]
    assert records == [{"image": {"bytes": picture(i), "path": None}} for i in range(5)]
    with pytest.raises(UserError, match="use `limit`"):
        splits.hub_files(source("owner/data", split="train[:2]"))


def test_hub_dataset_that_is_not_there():
    """Neither a path nor a dataset: the error names both and the source."""
    with pytest.raises(UserError, match=r"source s: no such file or folder: .*, and no dataset 'nobody/nothing'"):
        split_source(source("nobody/nothing"))


def test_lines_do_not_depend_on_where_files_are_split(tmp_path, monkeypatch):
    """File splits of a few bytes give the records and line numbers of one; blank lines count but are no records."""
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([json.dumps(RECORDS[0]), "", *map(json.dumps, RECORDS[1:])]))
    whole = read(source(path))
    assert [number for number, _ in whole] == [1, *range(3, 12)]
    for size in (1, 7, 40, 100):
        monkeypatch.setattr(splits, "LINES_BYTES", size)
        assert read(source(path)) == whole


def test_a_bad_line_costs_one_line(tmp_path):
    """Broken JSON, broken UTF-8 and a line that is no object are bad records with their line; the others are read."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": 1\n{"prompt": "\xff"}\n[1]\n{"prompt": "ok"}\n')
    found = read(source(path))
    assert [record.reason for _, record in found[:3] if isinstance(record, BadRecord)] == [
        "bad_json",
        "bad_json",
        "wrong_type",
    ]
    assert found[3] == (4, {"prompt": "ok"})
    assert split_source(source(path))[0].origin(3) == f"{path}:3"


def test_plain_text(tmp_path, monkeypatch):
    """Text files are cut at line ends; no word is lost between splits."""
    monkeypatch.setattr(splits, "LINES_BYTES", 100)
    words = [f"w{i}" for i in range(200)]
    (tmp_path / "a.txt").write_text("\n".join(" ".join(words[i : i + 5]) for i in range(0, 200, 5)))
    found = read(source(tmp_path / "a.txt", "text"))
    assert " ".join(record["text"] for _, record in found).split() == words


def test_folders_and_globs(tmp_path):
    """All data files below a folder, or what a pattern matches, in sorted order."""
    (tmp_path / "b").mkdir()
    write_lines(tmp_path / "b" / "2.jsonl", RECORDS[5:])
    write_lines(tmp_path / "1.jsonl", RECORDS[:5])
    (tmp_path / "readme.md").write_text("no data")
    assert [record for _, record in read(source(tmp_path))] == RECORDS
    assert [record for _, record in read(source(tmp_path / "*.jsonl"))] == RECORDS[:5]


def test_image_folder(tmp_path):
    """A folder of folders: the label is the parent's name with - and _ as spaces; the origin is the image's path."""
    (tmp_path / "green-apple_x").mkdir()
    (tmp_path / "green-apple_x" / "1.png").write_bytes(picture())
    (tmp_path / "labels.csv").write_text("no image")
    settings = source(tmp_path, "image_folder")
    path = str(tmp_path / "green-apple_x" / "1.png")
    assert read(settings) == [(1, {"image": path, "label": "green apple x"})]
    assert split_source(settings)[0].origin(1) == path


def test_webdataset(tmp_path):
    """Members of a tar that share a key are one record, with bytes by suffix."""
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in (("d/1.jpg", b"j1"), ("d/1.txt", b"t1"), ("d/2.jpg", b"j2"), ("d/2.json", b"{}")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    found = read(source(tmp_path / "0.tar", "webdataset"))
    assert found == [(1, {"jpg": b"j1", "txt": b"t1"}), (2, {"jpg": b"j2", "json": b"{}"})]


def test_limit_counts_records_over_files(tmp_path, monkeypatch):
    """The first N records of the source, whatever the files and splits."""
    monkeypatch.setattr(splits, "LINES_BYTES", 50)
    write_lines(tmp_path / "1.jsonl", RECORDS[:5])
    write_lines(tmp_path / "2.jsonl", RECORDS[5:])
    for limit in (1, 5, 7, 10, 99):
        assert [record for _, record in read(source(tmp_path, limit=limit))] == RECORDS[:limit]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.jsonl", r"source s: no such file or folder: /.*/nowhere\.jsonl; correct its `path`"),
        ("data.csv", "source s: .*data.csv is of no known kind"),
        ("saved", "has no split 'train', only .*test.*; set `split`"),
    ],
)
def test_paths_that_do_not_work_say_why(tmp_path, monkeypatch, path, message):
    """No file, a file of another kind, and a split that is not there: each error names the source and the cure."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text("a,b")
    datasets.DatasetDict({"test": datasets.Dataset.from_list(RECORDS)}).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=message):
        split_source(source(path))


def test_every_form_of_the_configuration_is_there():
    """The configuration's list of formats and the table of formats are the same."""
    assert set(FORMATS) == set(get_args(Format))
