"""Sources in a bucket: the same records as from a local copy of the same files, whatever their kind."""

import bz2
import gzip
import json
import lzma
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import picture
from unit.corpus.test_splits import tar, zstd

from lingu_ray import storage
from lingu_ray.config import SourceConfig, TaskConfig
from lingu_ray.corpus.fingerprint import source_content
from lingu_ray.corpus.image_folder import image_folder
from lingu_ray.corpus.load_image import load_image
from lingu_ray.corpus.patterns import matches
from lingu_ray.corpus.record import BadRecord
from lingu_ray.corpus.splits import check_source, split_source
from lingu_ray.errors import UserError
from lingu_ray.evaluation.tasks.rows import places
from lingu_ray.paths import data_path

RECORDS = [{"prompt": f"q{i}", "completion": f"a{i}" * 50} for i in range(200)]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
CSV = ("prompt,completion\n" + "".join(f"q{i},a{i}\n" for i in range(9))).encode()
BOTH = pytest.mark.parametrize("bucket", ["s3", "gs"], indirect=True)
EVERYTHING = (
    *("lines/a.jsonl", "lines/a.jsonl.gz", "lines/a.ndjson.bz2", "lines/a.txt.xz", "lines/a.tsv.zst", "lines/a.csv"),
    *("a.json", "tables/a.parquet", "tables/inner/a.parquet", "tables/a.arrow", "tables/a.feather.arrow"),
    *("saved", "splits", "w.tar", "w.tgz", "lines/a.json*", "**/*.parquet", "tables", "t*", "lines/?.csv"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One file of each kind, and pictures."""
    top = tmp_path / "data"
    for name in ("lines", "tables/inner", "pictures/a_dog"):
        (top / name).mkdir(parents=True)
    packed = {"jsonl": bytes, "jsonl.gz": gzip.compress, "ndjson.bz2": bz2.compress, "txt.xz": lzma.compress}
    for suffix, pack in packed.items():
        (top / f"lines/a.{suffix}").write_bytes(pack(LINES))
    (top / "lines/a.tsv.zst").write_bytes(zstd(CSV.replace(b",", b"\t")))
    (top / "lines/a.csv").write_bytes(CSV)
    (top / "lines/README.md").write_text("about")
    (top / "a.json").write_text(json.dumps(RECORDS))
    table = pa.Table.from_pylist(RECORDS)
    for name in ("a", "inner/a"):
        pq.write_table(table, top / f"tables/{name}.parquet", row_group_size=64)
    with pa.ipc.new_stream(top / "tables/a.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=64)
    with pa.ipc.new_file(top / "tables/a.feather.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=64)
    dataset = datasets.Dataset.from_list(RECORDS)
    dataset.save_to_disk(top / "saved", num_shards=2)
    datasets.DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(top / "splits")
    archive = tar(a__txt=b"one", a__json=b"{}", b__txt=b"two")
    (top / "w.tar").write_bytes(archive)
    (top / "w.tgz").write_bytes(gzip.compress(archive))
    for index in range(3):
        (top / f"pictures/a_dog/{index}.png").write_bytes(picture(index))
    return top


def upload(folder: Path, location: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            storage.put(path, f"{location}/{path.relative_to(folder)}")


def source(path: object, format: str = "prompt_completion", **settings: object) -> SourceConfig:
    return SourceConfig.model_validate({"name": "s", "format": format, "path": str(path), **settings})


@pytest.mark.slow
@BOTH
def test_records_are_those_of_the_local_files(bucket: str, folder: Path):
    """All kinds of files, folders and patterns: the same splits, the same records, and a stable fingerprint."""
    upload(folder, bucket)
    for path in EVERYTHING:
        here, there = source(folder / path), source(f"{bucket}/{path}")
        local, remote = split_source(here), split_source(there)
        moved = [replace(split, path=split.path.replace(str(folder), bucket)) for split in local]
        assert remote == moved, path
        assert [list(split.records()) for split in remote] == [list(split.records()) for split in local], path
        check_source(there, remote)
    some = source(f"{bucket}/tables")
    before = source_content(some, split_source(some))
    assert before == source_content(some, split_source(some))
    storage.put(CSV, f"{bucket}/tables/a.csv")
    assert before != source_content(some, split_source(some))
    limited = source(f"{bucket}/tables/a.parquet", limit=70)
    assert sum(len(list(split.records())) for split in split_source(limited)) == 70


@pytest.mark.slow
def test_pictures_are_found_in_the_bucket(bucket: str, folder: Path):
    """A folder of images, relative paths beside the records, an `image_root`, and full locations of the same bucket."""
    upload(folder, bucket)
    images = source(f"{bucket}/pictures", "image_folder", prompt="what?", answer="{label}")
    (split,) = split_source(images)
    records = [record for _, record in split.records() if not isinstance(record, BadRecord)]
    expected = [(folder / f"pictures/a_dog/{index}.png").read_bytes() for index in range(3)]
    assert [load_image(record["image"], image_folder(images, split)) for record in records] == expected
    assert {record["label"] for record in records} == {"a dog"} and split.origin(1) == f"{bucket}/pictures/a_dog/0.png"
    lines = source(f"{bucket}/lines/a.jsonl", image_root=f"{bucket}/pictures")
    assert load_image("a_dog/1.png", image_folder(lines, split_source(lines)[0])) == expected[1]
    beside = source(f"{bucket}/lines/a.jsonl")
    root = image_folder(beside, split_source(beside)[0])
    for reference in (
        "../pictures/a_dog/2.png",
        f"{bucket}/pictures/a_dog/2.png",
    ):
        assert load_image(reference, root) == expected[2]
    here = beside.model_copy(update={"image_root": str(folder)})
    for reference in ("pictures/a_dog/2.png", str(folder / "pictures/a_dog/2.png")):
        assert load_image(reference, image_folder(here, split_source(here)[0])) == expected[2]
    for reference, reason in (
        ("none.png", "missing_image"),
        ("s3://other/a.png", "remote_image"),
        ("x" * 2000, "missing_image"),
        (str(folder / "pictures/a_dog/2.png"), "missing_image"),
        (f"file://{folder}/pictures/a_dog/2.png", "missing_image"),
    ):
        with pytest.raises(BadRecord) as told:
            load_image(reference, root)
        assert told.value.reason == reason
    with pytest.raises(UserError, match=f"image_root: there is nothing below {bucket}/nowhere"):
        check_source(source(f"{bucket}/lines/a.jsonl", image_root=f"{bucket}/nowhere"), [])


@pytest.mark.slow
def test_what_is_not_there_or_damaged_is_told(bucket: str, folder: Path):
    """No data, an unknown kind, files that were cut off: an error with the location, before anything is built."""
    upload(folder, bucket)
    cut = folder / "lines/a.jsonl.gz"
    storage.put(cut.read_bytes()[:-20], f"{bucket}/cut/a.jsonl.gz")
    storage.put((folder / "tables/a.parquet").read_bytes()[:-20], f"{bucket}/cut/a.parquet")
    storage.put(b"?", f"{bucket}/odd/a.xyz")
    for path, problem in (
        ("none", "no data at"),
        ("lines/*.parquet", "no data at"),
        ("odd", "can be read by no reader"),
        ("odd/a.xyz", "of no known kind"),
        ("cut/a.parquet", "cannot be read"),
        ("cut/a.jsonl.gz", "cannot be read"),
    ):
        settings = source(f"{bucket}/{path}")
        with pytest.raises(UserError, match=f"source s: .*{problem}") as told:
            check_source(settings, split_source(settings))
            list(split_source(settings.model_copy(update={"limit": 1000})))
        assert bucket in str(told.value)
    with pytest.raises(UserError, match=r"has no split 'dev', only \['train', 'test'\]; set `split`"):
        split_source(source(f"{bucket}/splits", split="dev"))


@pytest.mark.slow
def test_evaluation_items_are_read_from_a_bucket(bucket: str, folder: Path):
    """A task's rows, of files and of saved datasets, are those of the local files."""
    upload(folder, bucket)
    for path, split in (("lines/a.jsonl", None), ("saved", None), ("splits", "test"), ("tables/*.parquet", None)):
        rows = []
        for place in (str(folder / path), f"{bucket}/{path}"):
            settings = {"name": "t", "kind": "language", "type": "perplexity", "path": place, "split": split}
            rows.append([(name, row.read()) for name, row in places(TaskConfig.model_validate(settings))])
        assert rows[0] == rows[1], path
    settings = {"name": "t", "kind": "language", "type": "perplexity", "path": f"{bucket}/splits"}
    with pytest.raises(UserError, match="has splits: set `split`"):
        list(places(TaskConfig.model_validate(settings)))


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*.jsonl", ["a.jsonl"], ["b/a.jsonl", ".a.jsonl", "a.json"]),
        ("**/*.jsonl", ["a.jsonl", "b/a.jsonl", "b/c/a.jsonl"], [".b/a.jsonl", "b/a.json"]),
        ("part-?", ["part-1", "part-1/a.jsonl"], ["part-10"]),
        ("b/[ab]*/**", ["b/ax/c", "b/b/c/d"], ["b/c/a", "b"]),
        (".b/*", [".b/a"], ["b/a"]),
    ],
)
def test_patterns_are_those_of_glob(pattern: str, matching: list[str], others: list[str]):
    """`*` stays in a folder and leaves out hidden names, `**` goes through all; a folder that matches is all in it."""
    for name in matching + others:
        below = "**" not in pattern
        assert matches(pattern.split("/"), name.split("/"), below) == (name in matching), name
    assert data_path(f"s3://bucket/{pattern}") == f"s3://bucket/{pattern}"
