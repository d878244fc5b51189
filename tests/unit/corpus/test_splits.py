import bz2
import codecs
import gzip
import io
import json
import logging
import lzma
import os
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import picture

from lingu_ray.config import Format, SourceConfig
from lingu_ray.corpus import compression, files, json_array
from lingu_ray.corpus import splits as corpus_splits
from lingu_ray.corpus.formats import FORMATS
from lingu_ray.corpus.readers import UNREADABLE
from lingu_ray.corpus.record import BadRecord
from lingu_ray.corpus.splits import check_source, split_source
from lingu_ray.errors import UserError
from lingu_ray.literals import parsed

RECORDS = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(10)]


def source(path: Path | str, format: Any = "prompt_completion", **settings) -> SourceConfig:
    return SourceConfig(name="s", format=format, path=str(path), **settings)


def read(settings: SourceConfig) -> list[tuple[int, Any]]:
    return [numbered for split in split_source(settings) for numbered in split.records()]


def write_lines(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def tar(**members: bytes) -> bytes:
    """An archive of `name__suffix` members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def file_names(value: Any) -> str:
    """Ids of a table of files."""
    return value if isinstance(value, str) else ""


def arrow(records: list[dict], writer: Any = pa.ipc.new_stream) -> bytes:
    table = pa.Table.from_pylist(records)
    sink = pa.BufferOutputStream()
    with writer(sink, table.schema) as stream:
        stream.write_table(table, max_chunksize=3)
    return sink.getvalue().to_pybytes()


LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
ARRAY = json.dumps(RECORDS, indent=1).encode()
CSV = b"\xef\xbb\xbfprompt,completion\r\n" + b"".join(f"q{i},a{i}\r\n".encode() for i in range(10))


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


@pytest.mark.parametrize(
    ("name", "content", "first"),
    [
        ("a.jsonl.gz", gzip.compress(LINES), 1),
        ("two-members.jsonl.gz", gzip.compress(LINES[:100]) + gzip.compress(LINES[100:]), 1),
        ("A.JSONL.BZ2", bz2.compress(LINES), 1),
        ("a.ndjson.xz", lzma.compress(LINES), 1),
        ("a.jsonl.zst", zstd(LINES), 1),
        ("lines.json.zstd", zstd(LINES), 1),
        ("blank-first.json", b"\n" + LINES, 2),
        ("array.json.gz", gzip.compress(ARRAY), 1),
        ("array.json.bz2", bz2.compress(ARRAY), 1),
        ("array.json.xz", lzma.compress(ARRAY), 1),
        ("array.json.zst", zstd(ARRAY), 1),
        ("a.csv", CSV, 2),
        ("a.csv.gz", gzip.compress(CSV), 2),
        ("a.tsv", CSV.replace(b",", b"\t"), 2),
        ("stream.arrow", arrow(RECORDS), 1),
        ("file.arrow", arrow(RECORDS, pa.ipc.new_file), 1),
    ],
    ids=file_names,
)
def test_compressed_files_and_tables_give_the_same_records(tmp_path, monkeypatch, name, content, first):
    """Whatever the compression, and rows of CSV and TSV with BOM and CRLF, numbered by line; both kinds of Arrow."""
    monkeypatch.setattr(compression, "LINES_BYTES", 100)
    (tmp_path / name).write_bytes(content)
    assert read(source(tmp_path / name)) == list(enumerate(RECORDS, first))
    assert [record for _, record in read(source(tmp_path / name, limit=4))] == RECORDS[:4]


def test_compressed_text_and_tar(tmp_path, monkeypatch):
    """Compressed text is read in blocks of lines, a compressed archive as the plain one is."""
    monkeypatch.setattr(compression, "LINES_BYTES", 10)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one two\nthree\nfour\n"))
    assert read(source(tmp_path / "a.txt.gz", "text")) == [(1, {"text": "one two\nthree\n"}), (3, {"text": "four\n"})]
    for name in ("a.tar.gz", "a.tgz"):
        (tmp_path / name).write_bytes(gzip.compress(tar(one__jpg=b"j", one__txt=b"t")))
        assert read(source(tmp_path / name, "webdataset")) == [(1, {"jpg": b"j", "txt": b"t"})]


def test_tables_keep_what_is_written(tmp_path):
    """CSV values are text, quoted ones with line breaks and commas; an empty one stays empty; blank lines are none."""
    path = tmp_path / "a.csv"
    path.write_text('a,b,\n007,,x\n\n"two\nlines, ""quoted""",NA,\n')
    assert read(source(path)) == [(2, {"a": "007", "b": ""}), (4, {"a": 'two\nlines, "quoted"', "b": "NA"})]


def test_a_bad_row_of_a_table_costs_its_lines(tmp_path):
    """Missing fields, other bytes than UTF-8, and every line that a stray quote swallows; the rows after are read."""
    path = tmp_path / "a.csv"
    path.write_bytes(b'a,b\n1\n1,2,3\n\xff,2\n"stray,2\nswallowed,"2"\nok,2\n')
    found = read(source(path))
    assert [(number, r.reason) for number, r in found if isinstance(r, BadRecord)] == [
        (number, "bad_csv") for number in (2, 3, 4, 5, 6)
    ]
    assert found[-1] == (7, {"a": "ok", "b": "2"})


def test_a_carriage_return_is_part_of_a_text(tmp_path):
    """Without quotes, too, as pandas writes one: what stands behind it is no row, though it may have the columns."""
    texts = ["a\rb", "c\r\nd", "\rx", 'e"\r"', "f\n\rg"]
    table = pd.DataFrame({"prompt": texts, "completion": texts[::-1]})
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_csv(tmp_path / "windows.csv", index=False, lineterminator="\r\n")
    for name in ("a.csv", "windows.csv"):
        assert [record for _, record in read(source(tmp_path / name))] == table.to_dict("records")
    (tmp_path / "mac.csv").write_bytes(b"a,b\rc,d\r")
    with pytest.raises(ValueError, match="its lines end with carriage returns alone"):
        read(source(tmp_path / "mac.csv"))


def test_a_value_that_python_has_not_costs_its_row(tmp_path):
    """Of parquet: text that is not UTF-8 and a date of another unit; other rows are read, and none ends the build."""
    text = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pa.py_buffer(b"ok\xff\xfe")]
    )
    dates = pa.array([1, 10**16], pa.timestamp("ms"))
    for name, column in (("text", text), ("date", dates)):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"prompt": ["a", "b"], name: column}), path)
        [split] = split_source(SourceConfig(name="s", format="template", path=str(path), prompt="{prompt}", answer="x"))
        [(_, good), (number, bad)] = split.records()
        assert isinstance(good, dict) and good["prompt"] == "a" and number == 2
        assert isinstance(bad, BadRecord) and bad.reason == "wrong_type"
        assert bad.detail.startswith(f"'{name}' cannot be read")


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_floats_of_32_bits_are_the_decimals_that_they_were(tmp_path, kind):
    """Wherever they stand in a column: the same float, in the fewest digits; others are as they were."""
    float32 = pa.float32()
    table = pa.table(
        {
            "price": pa.array([19.99, None, 3.0], float32),
            "exact": pa.array([0.1, 0.2, 1e-9], pa.float64()),
            "boxes": pa.array([[0.1, None], [], None], pa.list_(float32)),
            "large": pa.array([[0.1], [1e-7], [-0.3]], pa.large_list(float32)),
            "pair": pa.array([[0.1, 0.7]] * 3, pa.list_(float32, 2)),
            "object": pa.array([{"x": [{"y": 1.1, "n": 1}]}, None, {"x": None}]).cast(
                pa.struct([("x", pa.list_(pa.struct([("y", float32), ("n", pa.int64())])))])
            ),
        }
    )
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    assert [record for _, record in read(source(path))] == [
        {"price": 19.99, "exact": 0.1, "boxes": [0.1, None], "large": [0.1], "pair": [0.1, 0.7]}
        | {"object": {"x": [{"y": 1.1, "n": 1}]}},
        {"price": None, "exact": 0.2, "boxes": [], "large": [1e-7], "pair": [0.1, 0.7], "object": None},
        {"price": 3.0, "exact": 1e-9, "boxes": None, "large": [-0.3], "pair": [0.1, 0.7], "object": {"x": None}},
    ]


def test_a_blank_before_a_quote_costs_its_line(tmp_path):
    """The quotes would be learned as text; where a quoted field itself holds some, they are text."""
    path = tmp_path / "a.csv"
    path.write_text('prompt,completion\n"q", "a ""b"""\nq, a\nq," he said ""a"""\n')
    (number, bad), *good = read(source(path))
    assert number == 2 and isinstance(bad, BadRecord) and bad.reason == "bad_csv" and "a blank before" in bad.detail
    assert good == [(3, {"prompt": "q", "completion": " a"}), (4, {"prompt": "q", "completion": ' he said "a"'})]


def test_turns_without_a_record_are_told_with_the_cure(tmp_path):
    """In a line, and in a member of a tar."""
    turns = json.dumps([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])
    (tmp_path / "a.jsonl").write_text(turns)
    [(_, bad)] = read(source(tmp_path / "a.jsonl"))
    assert isinstance(bad, BadRecord) and 'such as {"messages": [turns]}' in bad.detail
    with pytest.raises(BadRecord, match=r'such as {"messages": \[turns\]}'):
        list(FORMATS["webdataset"]({"json": turns.encode()}, source(tmp_path, "webdataset")))


def test_maps_are_objects(tmp_path):
    """At any depth; one that gives a key twice costs its row."""
    of_text, of_floats = pa.map_(pa.string(), pa.string()), pa.map_(pa.string(), pa.float32())
    turns = [[("role", "user"), ("content", "q")]]
    about = [[("x", 0.1)], None, [("x", 1.0), ("x", 2.0)]]
    columns = {"turns": pa.array([turns, [], turns], pa.list_(of_text)), "about": pa.array(about, of_floats)}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    first, second, (number, bad) = read(source(tmp_path / "a.parquet"))
    assert first == (1, {"turns": [{"role": "user", "content": "q"}], "about": {"x": 0.1}})
    assert second == (2, {"turns": [], "about": None})
    assert number == 3 and isinstance(bad, BadRecord) and bad.reason == "wrong_type" and "'about'" in bad.detail


def test_a_key_given_twice_costs_its_record(tmp_path):
    """In JSON lines, also deep in a record: a reader that keeps the last one would lose the other."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1, "a": 2}\n{"a": [{"b": 1, "b": 1}]}\n{"a": {"b": 1}, "b": 2}\n')
    bad, deep, (_, good) = read(source(path))
    assert all(isinstance(record, BadRecord) and record.reason == "bad_json" for _, record in (bad, deep))
    assert "the key 'a' is given twice" in bad[1].detail and "the key 'b' is given twice" in deep[1].detail
    assert good == {"a": {"b": 1}, "b": 2}


PARQUET, TWICE = io.BytesIO(), io.BytesIO()
pq.write_table(pa.Table.from_pylist(RECORDS * 50), PARQUET)
pq.write_table(pa.table([["q"], ["a"]], names=["text", "text"]), TWICE)


@pytest.mark.parametrize(
    ("name", "content", "format"),
    [
        ("a.jsonl.gz", gzip.compress(LINES)[:-9], "prompt_completion"),
        ("a.jsonl.gz", LINES, "prompt_completion"),
        ("a.jsonl.bz2", bz2.compress(LINES)[:-9], "prompt_completion"),
        ("a.jsonl.xz", lzma.compress(LINES)[:-9], "prompt_completion"),
        ("a.jsonl.zst", zstd(LINES)[:-9], "prompt_completion"),
        ("second.jsonl.bz2", bz2.compress(LINES) + b"?" + bz2.compress(LINES)[1:], "prompt_completion"),
        ("second.jsonl.xz", lzma.compress(LINES) + b"?" + lzma.compress(LINES)[1:], "prompt_completion"),
        ("flipped.jsonl.gz", gzip.compress(LINES)[:40] + b"????" + gzip.compress(LINES)[44:], "prompt_completion"),
        ("a.json", json.dumps(RECORDS).encode()[:-9], "prompt_completion"),
        ("a.json", b"[" * 100_000, "prompt_completion"),
        ("a.parquet", PARQUET.getvalue()[:-9], "prompt_completion"),
        ("a.parquet", PARQUET.getvalue()[:40] + b"????" * 20 + PARQUET.getvalue()[120:], "prompt_completion"),
        ("a.csv", CSV + b'"never closed,\n' + CSV, "prompt_completion"),
        ("a.csv", b"a,a\n1,2\n", "prompt_completion"),
        ("a.parquet", TWICE.getvalue(), "text"),
        ("twice.json", b'[{"prompt": "q", "prompt": "r"}]', "prompt_completion"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16"), "prompt_completion"),
        ("a.arrow", arrow(RECORDS)[:-9], "prompt_completion"),
        ("no-end.arrow", arrow(RECORDS)[:-8], "prompt_completion"),
        ("in-member.tar", tar(a__jpg=b"j" * 2000, b__jpg=b"j" * 2000)[:4000], "webdataset"),
        ("between-members.tar", tar(a__jpg=b"j" * 500, b__jpg=b"j")[:1024], "webdataset"),
        ("in-header.tar", tar(a__jpg=b"j" * 500, b__jpg=b"j")[:1100], "webdataset"),
        ("damaged.tar", tar(a__jpg=b"j", b__jpg=b"j").replace(b"b.jpg", b"c.jpg"), "webdataset"),
        ("a.tar.gz", gzip.compress(tar(a__jpg=b"j", b__jpg=b"j"))[:-9], "webdataset"),
        ("empty.tar", b"", "webdataset"),
    ],
    ids=file_names,
)
def test_a_damaged_file_never_gives_half_of_its_records(tmp_path, name, content, format):
    """A file that was cut off or damaged is an error that names source and file, on splitting or on reading."""
    (tmp_path / name).write_bytes(content)
    settings = source(tmp_path / name, format)
    with pytest.raises((UserError, *UNREADABLE)) as caught:
        read(settings)
    if isinstance(caught.value, UserError):
        assert str(caught.value).startswith(f"source s: {tmp_path / name} cannot be read: ")
    with pytest.raises(UserError, match=rf"source s: .*{name} cannot be read: "):
        read(settings.model_copy(update={"limit": 1000}))


@pytest.mark.parametrize("size", [0, 1024, 1100])
def test_an_archive_without_its_end_is_refused_by_any_python(tmp_path, monkeypatch, size):
    """Later Pythons, security releases of older ones too, call what a `frombuf` of one's own replaces directly."""

    def fromtarfile(cls, archive):
        header = archive.fileobj.read(tarfile.BLOCKSIZE)
        member = of_python(cls, header, archive.encoding, archive.errors)
        member.offset = archive.fileobj.tell() - tarfile.BLOCKSIZE
        return member._proc_member(archive)

    of_python = tarfile.TarInfo.frombuf.__func__
    monkeypatch.setattr(tarfile.TarInfo, "fromtarfile", classmethod(fromtarfile))
    whole = tar(a__jpg=b"j" * 500, b__jpg=b"j")
    for name, content in ("whole", whole), ("cut", whole[:size]):
        (tmp_path / f"{name}.tar").write_bytes(content)
    assert len(read(source(tmp_path / "whole.tar", "webdataset"))) == 2
    with pytest.raises(tarfile.ReadError, match=r"the archive (has no end|is damaged)"):
        read(source(tmp_path / "cut.tar", "webdataset"))


@pytest.mark.parametrize(
    ("name", "content", "format"),
    [
        ("a.jsonl", '{"prompt": "A?", "completion": "a"}\n', "prompt_completion"),
        ("a.csv", "prompt,completion\nA?,a\n", "prompt_completion"),
        ("a.txt", "one two three\n", "text"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_text_in_utf16_is_told(tmp_path, name, content, format, encoding):
    """As Windows writes it: the error says what to do, and no line is counted as a bad record."""
    mark = b"" if encoding == "utf-16" else codecs.BOM_UTF16_BE
    (tmp_path / name).write_bytes(mark + content.encode(encoding))
    with pytest.raises((UserError, *UNREADABLE), match="UTF-16: convert it to UTF-8"):
        read(source(tmp_path / name, format))


def test_a_header_in_another_encoding_is_told(tmp_path):
    """Its names would be others: the file is an error, where a row would be a bad record."""
    (tmp_path / "a.csv").write_bytes("prompt,completion,größe\nA?,a,1\n".encode("latin-1"))
    with pytest.raises((UserError, *UNREADABLE), match="it is not UTF-8 text"):
        read(source(tmp_path / "a.csv", "prompt_completion"))


@pytest.mark.parametrize(
    ("suffix", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstd)]
)
def test_joined_compressed_files_are_read_to_the_end(tmp_path, monkeypatch, suffix, compress):
    """Streams joined by `cat` or by a compressor of several threads, empty ones and padding too, read in pieces."""
    monkeypatch.setattr(compression, "_READ", 7)
    padding = b"" if suffix == "zst" else b"\0" * 16
    content = compress(LINES) + padding + compress(b"") + compress(LINES) + padding
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(content)
    assert [record for _, record in read(source(tmp_path / f"a.jsonl.{suffix}"))] == RECORDS * 2


def test_joined_archives_are_read_to_the_end(tmp_path):
    """Archives that were joined with `cat` are one; an archive of nothing has no records."""
    (tmp_path / "a.tar").write_bytes(tar(a__jpg=b"1") + tar(b__jpg=b"2"))
    (tmp_path / "none.tar").write_bytes(tar())
    assert read(source(tmp_path / "a.tar", "webdataset")) == [(1, {"jpg": b"1"}), (2, {"jpg": b"2"})]
    assert read(source(tmp_path / "none.tar", "webdataset")) == []


FEATURES = datasets.Features(
    {
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "list": datasets.List(datasets.ClassLabel(names=["x", "y"])),
        "struct": {"inner": [{"label": datasets.ClassLabel(names=["u", "v"])}]},
        "image": datasets.Image(),
        "number": datasets.Value("int64"),
    }
)
LABELED = {
    "label": [1, -1, None],
    "list": [[0, 1], [], None],
    "struct": [{"inner": [{"label": 1}]}, {"inner": []}, {"inner": [{"label": -1}]}],
    "image": [{"bytes": b"i", "path": None}, None, {"bytes": b"i", "path": "a.png"}],
    "number": [1, -1, None],
}
NAMED = {
    "label": ["dog", None, None],
    "list": [["x", "y"], [], None],
    "struct": [{"inner": [{"label": "v"}]}, {"inner": []}, {"inner": [{"label": None}]}],
    "image": LABELED["image"],
    "number": [1, -1, None],
}


def test_class_labels_are_read_as_their_names(tmp_path):
    """Integers become the names of the features, wherever they are stored; images and plain numbers stay."""
    dataset = datasets.Dataset.from_dict(LABELED, features=FEATURES)
    dataset.to_parquet(tmp_path / "a.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    (tmp_path / "beside").mkdir()
    plain = dataset.data.table.replace_schema_metadata(None)
    pq.write_table(plain, tmp_path / "beside" / "a.parquet")
    (tmp_path / "beside" / "dataset_info.json").write_text(json.dumps({"features": FEATURES.to_dict()}))
    expected = [dict(zip(NAMED, row, strict=True)) for row in zip(*NAMED.values(), strict=True)]
    for name in ("a.parquet", "saved", "beside"):
        assert [record for _, record in read(source(tmp_path / name))] == expected, name
    [split] = split_source(source(tmp_path / "a.parquet"))
    assert [r["label"] for _, r in replace(split, label_names=False).records()] == LABELED["label"]  # type: ignore


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ('{"features": [{"name": "label"}]}', "its features are no object"),
        ('{"features": ', "is cut off, or no JSON"),
        ("[]", "holds no object"),
    ],
)
def test_features_that_are_none_are_told(tmp_path, written, told):
    """As a card's list of them, or a file that was cut off."""
    pq.write_table(pa.table({"label": [0, 1]}), tmp_path / "a.parquet")
    (tmp_path / "dataset_info.json").write_text(written)
    with pytest.raises(UserError, match=f"dataset_info.json:? {told}.*: correct it, or remove it"):
        read(source(tmp_path))


def test_texts_among_json_are_read_as_texts(tmp_path):
    """Where `content` is text here and parts there, `datasets` stores all as JSON, texts in quotes that are no part."""
    parts = [{"type": "text", "text": 'A "b"?'}]
    contents = ['What\'s "é"?\n', parts, "4", None]
    turns = [{"user": "A?"}, {"user": parts}]
    rows = [
        {"messages": [{"role": "user", "content": content}], "any": content, "turns": turns} for content in contents
    ]
    dataset = datasets.Dataset.from_list(rows, on_mixed_types="use_json")
    dataset.to_parquet(tmp_path / "a.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    for name in ("a.parquet", "saved"):
        records = [record for _, record in read(source(tmp_path / name))]
        found = [(record["messages"][0]["content"], record["any"]) for record in records]
        assert [parsed(text) for pair in found for text in pair] == [content for content in contents for _ in range(2)]
        assert [[parsed(turn["user"]) for turn in record["turns"]] for record in records] == [["A?", parts]] * 4


def test_sequences_of_objects_are_named_too_and_a_label_without_a_name_is_bad(tmp_path):
    """Older features keep a sequence of objects as lists side by side; an integer past the names is a bad record."""
    label = {"names": ["u", "v"], "_type": "ClassLabel"}
    features = {"old": {"feature": {"label": label, "box": {"_type": "Value"}}, "_type": "Sequence"}, "list": [label]}
    schema = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    rows = [{"old": {"label": [1, 0], "box": [3, 4]}, "list": [0]}, {"old": None, "list": [2]}]
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(schema), tmp_path / "a.parquet")
    (_, first), (_, second) = read(source(tmp_path / "a.parquet"))
    assert first == {"old": {"label": ["v", "u"], "box": [3, 4]}, "list": ["u"]}
    assert isinstance(second, BadRecord) and "class label 2" in second.detail


def test_hub_datasets_are_read_from_their_cache(tmp_path, monkeypatch):
    """What `load_dataset` fetches is read in full, images undecoded; a slice of a split is refused."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "owner" / "data").mkdir(parents=True)
    table = datasets.Dataset.from_list([{"image": {"bytes": picture(i), "path": None}} for i in range(5)])
    table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "owner" / "data" / "train.parquet")
    found = files.hub_files(source("owner/data"))
    records = [record for path in found for _, record in read(source(path))]
    assert records == [{"image": {"bytes": picture(i), "path": None}} for i in range(5)]
    with pytest.raises(UserError, match="use `limit`"):
        files.hub_files(source("owner/data", split="train[:2]"))


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
        monkeypatch.setattr(compression, "LINES_BYTES", size)
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
    monkeypatch.setattr(compression, "LINES_BYTES", 100)
    words = [f"w{i}" for i in range(200)]
    (tmp_path / "a.txt").write_text("\n".join(" ".join(words[i : i + 5]) for i in range(0, 200, 5)))
    found = read(source(tmp_path / "a.txt", "text"))
    assert " ".join(record["text"] for _, record in found).split() == words


def test_a_bad_line_of_text_costs_one_line(tmp_path, monkeypatch):
    """Lines that are not UTF-8 are bad records with their numbers; runs of good ones between them are read, blank not.

    The mark that some editors write at a file's beginning is no text.
    """
    content = b"\xef\xbb\xbfone\ntwo\ncaf\xe9\n\nnai\xef\nthree\n\xff\xfe"
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content))
    for size in (4 << 20, 1):
        monkeypatch.setattr(compression, "LINES_BYTES", size)
        for name in ("a.txt", "a.txt.gz"):
            found = read(source(tmp_path / name, "text"))
            assert [(number, r.reason) for number, r in found if isinstance(r, BadRecord)] == [
                (number, "wrong_type") for number in (3, 5, 7)
            ]
            good = [(number, record["text"]) for number, record in found if not isinstance(record, BadRecord)]
            assert good == [(1, "one\ntwo\n"), (6, "three\n")] or size == 1
            assert "".join(text for _, text in good) == "one\ntwo\nthree\n"
    bad = next(record for _, record in found if isinstance(record, BadRecord))
    assert "not UTF-8 text" in bad.detail and "b'caf\\xe9" in bad.detail


def test_folders_and_globs(tmp_path):
    """All data files below a folder, or what a pattern matches, in sorted order."""
    (tmp_path / "b").mkdir()
    write_lines(tmp_path / "b" / "2.jsonl", RECORDS[5:])
    write_lines(tmp_path / "1.jsonl", RECORDS[:5])
    (tmp_path / "readme.md").write_text("no data")
    assert [record for _, record in read(source(tmp_path))] == RECORDS
    assert [record for _, record in read(source(tmp_path / "*.jsonl"))] == RECORDS[:5]


@pytest.mark.parametrize(
    ("format", "others", "unknown"),
    [
        ("messages", ["README.md", "readme.txt", "LICENSE", "dataset_info.json", "_SUCCESS", "images/a.png"], None),
        ("messages", [".gitattributes", ".cache/b.jsonl", "video/a.mp4", "make.py", "config.yaml"], None),
        ("messages", ["cache-0123456789abcdef.arrow"], None),
        ("messages", ["b.xlsx"], "b.xlsx"),
        ("messages", ["deep/b.parquet.gz", "part-00000"], "deep/b.parquet.gz, part-00000"),
        ("messages", ["1.zip", "2.zip", "3.zip", "4.zip"], "1.zip, 2.zip, 3.zip and 1 more"),
        ("image_folder", ["cat/labels.csv", "cat/notes.txt", "README.md", "cat/.DS_Store"], None),
        ("image_folder", ["cat/2.heic"], "cat/2.heic"),
    ],
)
def test_no_file_of_a_folder_is_left_out_in_silence(tmp_path, caplog, format, others, unknown):
    """What is no data by a rule is counted in the log by suffix; what else cannot be read is an error that names it."""
    tmp_path = tmp_path / ".hidden"  # of the folder's own path nothing is said
    tmp_path.mkdir()
    for name in ("a.jsonl", "cat/1.jpg", *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(LINES)
    for path in (tmp_path, f"{tmp_path}/**"):
        if unknown:
            with pytest.raises(UserError, match=rf"source s: .*{unknown} in .* can be read by no reader"):
                split_source(source(path, format))
            continue
        with caplog.at_level(logging.INFO, logger="lingu_ray"):
            found = [path for split in split_source(source(path, format)) for path in split.files or (split.path,)]
        assert found == [str(tmp_path / ("cat/1.jpg" if format == "image_folder" else "a.jsonl"))]
        assert "source s: left out as no data: " in caplog.text


@pytest.mark.parametrize("name", ["metadata.jsonl", "cat/metadata.csv"])
def test_what_is_written_about_pictures_is_not_left_out(tmp_path, name):
    """Where a file of `datasets`' `imagefolder` has the captions, answers are not the names of folders."""
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(b"x")
    (tmp_path / name).write_text("file_name,text\n1.png,a cat\n")
    with pytest.raises(UserError, match=rf"source s: {name} in .* `format: template` with `image: file_name`"):
        split_source(source(tmp_path, "image_folder"))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("_delta_log/00000000000000000000.json", "a Delta table"),
        ("deep/.hoodie/hoodie.properties", "a Hudi table"),
        ("_temporary/0/_temporary/attempt_0/part-00000.jsonl", "what Spark has not finished writing"),
    ],
)
def test_files_that_may_hold_rows_no_longer_meant_are_not_read(tmp_path, name, told):
    """A table keeps the files of earlier versions: a pattern says which are meant."""
    write_lines(tmp_path / "a.jsonl", RECORDS)
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_bytes(LINES)
    with pytest.raises(UserError, match=f"source s: {tmp_path} holds {told} .*: write the current ones into files"):
        split_source(source(tmp_path))
    assert [record for _, record in read(source(tmp_path / "*.jsonl"))] == RECORDS


def test_pictures_without_rows_are_told_with_the_cure(tmp_path):
    """The folder of the pictures in place of the file with the rows: not only that there are no data."""
    (tmp_path / "1.png").write_bytes(b"x")
    for path in (tmp_path, f"{tmp_path}/*"):
        with pytest.raises(UserError, match="has pictures and no rows: let `path` name the file"):
            split_source(source(path, "llava"))


def test_a_folder_of_several_kinds_is_read_as_a_whole_and_says_so(tmp_path, caplog):
    """JSON Lines beside CSV: all records, and a warning with the counts, and a pattern that names one kind alone."""
    for name, content in (("a-0.jsonl", LINES), ("a-1.jsonl.gz", gzip.compress(LINES)), ("b.csv", CSV)):
        (tmp_path / name).write_bytes(content)
    assert [record for _, record in read(source(tmp_path))] == RECORDS * 3
    assert "files of several kinds are all read: 1 .csv, 1 .jsonl, 1 .jsonl.gz;" in caplog.text
    assert caplog.text.endswith("by a pattern such as folder/*.csv\n")


CARD = """---
license: mit
configs:
- config_name: main
  data_files: main/*
- config_name: "socratic"
  data_files:
  - split: train
    path: socratic/*
dataset_info:
- config_name: old
  features: {label: {names: {0: no, 1: yes}}}
---
# configs:
- config_name: none
"""


def test_a_folder_of_several_configurations_says_so(tmp_path, caplog):
    """As a copy of a data set of the hub has them: those that its card lists, which `subset` would choose among."""
    for name in ("main", "socratic"):
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name / "train-00000-of-00001.jsonl", RECORDS)
    (tmp_path / "README.md").write_text(CARD)
    assert len(read(source(tmp_path))) == 2 * len(RECORDS)
    assert (
        "has 2 configurations by its README.md (main, socratic), and all are read; if not all are meant, let"
        in caplog.text
    )
    caplog.clear()
    assert len(read(source(tmp_path / "main"))) == len(RECORDS)
    for card in (CARD.replace("config_name", "name"), CARD.replace("license: mit", "license: ["), "---\nno card", ""):
        (tmp_path / "README.md").write_text(card)
        read(source(tmp_path))
    assert not caplog.text


SPLIT_FILES = ("train-0.jsonl", "data/train/1.csv", "test/2.csv", "x_val.jsonl", "evaluation.jsonl")


@pytest.mark.parametrize(
    ("split", "read_of_it"),
    [("train", SPLIT_FILES[:2]), ("test", ("evaluation.jsonl", "test/2.csv")), ("dev", SPLIT_FILES[3:4])],
)
def test_a_folder_gives_the_files_of_one_split(tmp_path, caplog, split, read_of_it):
    """By the names of files and folders, in any spelling; what a pattern names is read, with a warning."""
    for name in SPLIT_FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(CSV if name.endswith(".csv") else LINES)
    with caplog.at_level(logging.INFO, logger="lingu_ray"):
        found = {one.path for one in split_source(source(tmp_path, split=split))}
    assert found == {str(tmp_path / name) for name in read_of_it}
    assert "has 2 test, 2 train, 1 validation; read of them: " in caplog.text
    assert len(split_source(source(f"{tmp_path}/**"))) == len(SPLIT_FILES)
    assert "files of several splits are all read: 2 test, 2 train, 1 validation; if not all" in caplog.text


@pytest.mark.parametrize(
    ("names", "split", "read_of_it"),
    [
        (("data/train_sft-", "data/train_gen-", "data/test_sft-"), "train_sft", {"data/train_sft-"}),
        (("data/train_sft-", "data/test_sft-"), "train", {"data/train_sft-"}),
        (("main/train-", "main/test-", "main/train_gen-"), "train", {"main/train-"}),
        (("data/train-", "data/unlabeled-"), "train", {"data/train-"}),
        (("chat-train_sft-", "chat-train_gen-"), "train_gen", {"chat-train_gen-"}),  # as the cache of `datasets`
        (("data/en-", "data/de-"), "de", {"data/de-"}),
        (("data/dev-", "data/test-"), "validation", {"data/dev-"}),
        (("test/part-", "train/part-"), "train", {"train/part-"}),
        (("part-", "more/part_b-"), "train", {"part-", "more/part_b-"}),
    ],
)
def test_shards_are_of_the_split_that_they_name(tmp_path, names, split, read_of_it):
    """As `push_to_hub` names them, whatever the split is called: `train_gen` beside `train_sft` is no `train`."""
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}00000-of-00001.jsonl").write_bytes(LINES)
    found = {one.path for one in split_source(source(tmp_path, split=split))}
    assert found == {f"{tmp_path / name}00000-of-00001.jsonl" for name in read_of_it}


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"], None),
        (["a/train-00000-of-00002-0123456789abcdef.parquet", "a/train-00001-of-00002-fedcba9876543210.parquet"], None),
        (["data/train-00001-of-00003.parquet"], "data/train: 1 of 3;"),
        (["x-0-of-1.parquet", "x-0-of-2.parquet", "x-1-of-2.parquet"], "x: 1 of 1 and 2 of 2;"),
    ],
)
def test_shards_that_are_no_whole_set_are_told(tmp_path, caplog, names, told):
    """As after a download that was cut off, or where an earlier version of the data set left its shards."""
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / name)
    assert len(read(source(tmp_path))) == len(names) * len(RECORDS)
    assert caplog.text.count("are not one whole set: ") == bool(told)
    assert (told or "") in caplog.text


def test_pictures_of_a_folder_are_of_a_split_by_their_folders(tmp_path):
    """Of classes in folders below train and test; a class of that name, or a picture's, is no split."""
    for name in ("train/cat/1.png", "train/test/2.png", "test/cat/test-3.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x")
    found = [file for one in split_source(source(tmp_path, "image_folder")) for file in one.files]
    assert found == [str(tmp_path / name) for name in ("train/cat/1.png", "train/test/2.png")]
    classes = [file for one in split_source(source(tmp_path / "train", "image_folder")) for file in one.files]
    assert classes == found


@pytest.mark.parametrize(
    ("names", "split", "problem"),
    [
        (
            ("test.jsonl", "dev.jsonl"),
            "train",
            "has 1 test, 1 validation, and no file of the split 'train': set `split`",
        ),
        (
            ("train_sft-00000-of-00001.jsonl", "train_gen-00000-of-00001.jsonl"),
            "train",
            "has 1 train_gen, 1 train_sft, and no file of the split 'train': set `split`",
        ),
        (("a.jsonl", "b.jsonl"), "test", "has 2 of no split, and no file of the split 'test'"),
        (("train.jsonl", "b.jsonl"), "test", "has 1 of no split, 1 train, and no file of the split 'test'"),
        (("train.jsonl", "test.jsonl", "b.jsonl"), "train", "what belongs to the split 'train' is not known"),
    ],
)
def test_no_other_split_is_read_than_the_one_that_is_named(tmp_path, names, split, problem):
    """An error says what is there and how to choose."""
    for name in names:
        (tmp_path / name).write_bytes(LINES)
    with pytest.raises(UserError, match=f"source s: .* {problem}"):
        split_source(source(tmp_path, split=split))


@pytest.mark.parametrize("name", ["test.jsonl", "a.jsonl"])
def test_a_folder_of_one_split_is_read_as_it_is(tmp_path, name):
    """Its files are those that were asked for, whatever they are called."""
    write_lines(tmp_path / name, RECORDS)
    assert [record for _, record in read(source(tmp_path))] == RECORDS


def test_what_chooses_among_nothing_is_refused(tmp_path):
    """`subset` and `revision` of files, and `split` of a file, a pattern, or a saved data set of one split."""
    write_lines(tmp_path / "a.jsonl", RECORDS)
    datasets.Dataset.from_list(RECORDS).save_to_disk(tmp_path / "saved")
    for path in ("a.jsonl", "*.jsonl", "saved"):
        settings = source(tmp_path / path, split="test")
        with pytest.raises(UserError, match=r"`split` chooses within a folder or a dataset, and .* has one split"):
            check_source(settings, split_source(settings))
    for setting in ("subset", "revision"):
        settings = source(tmp_path, **{setting: "en"})
        with pytest.raises(UserError, match=rf"source s: `{setting}` is for datasets of the hub, and .* is not one"):
            check_source(settings, split_source(settings))


def test_links_are_followed_once(tmp_path):
    """A linked folder is read, one that leads back up is not read again, and a link to nothing is an error."""
    (tmp_path / "elsewhere").mkdir()
    write_lines(tmp_path / "elsewhere" / "a.jsonl", RECORDS)
    data = tmp_path / "data"
    data.mkdir()
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "linked" / "up").symlink_to(data)
    assert [record for _, record in read(source(data))] == RECORDS
    (data / "gone.jsonl").symlink_to(tmp_path / "gone")
    for path in (data, data / "gone.jsonl"):
        with pytest.raises(UserError, match=r"source s: .*gone.jsonl is no file, or a link to none"):
            split_source(source(path))


def test_no_pipe_is_waited_for(tmp_path):
    """A named pipe is no file: opening it would wait forever."""
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=r"source s: .*a.jsonl is no file"):
        split_source(source(tmp_path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b""),
        ("b.jsonl", b"\n \n"),
        ("c.txt", b""),
        ("d.json", b"[]"),
        ("j.json", b"\n"),
        ("e.csv", b"a,b\n"),
        ("f.jsonl.bz2", bz2.compress(b"")),
    ],
)
def test_a_source_without_records_is_named(tmp_path, name, content):
    """An empty file as the only one of a source is an error that names both; beside others it does no harm.

    A folder of images that is not there, or is a file, is named, too.
    """
    (tmp_path / name).write_bytes(content)
    empty = source(tmp_path / name)
    with pytest.raises(UserError, match=rf"source s: .*{name} holds no records"):
        check_source(empty, split_source(empty))
    write_lines(tmp_path / "z.jsonl", RECORDS)
    check_source(source(tmp_path), split_source(source(tmp_path)))
    no_images = source(tmp_path, image_root=str(tmp_path / "images"))
    with pytest.raises(UserError, match=r"source s: image_root: no such folder: .*images"):
        check_source(no_images, split_source(no_images))
    in_a_file = source(tmp_path, image_root=str(tmp_path / "z.jsonl"))
    with pytest.raises(UserError, match=r"source s: image_root: .*z.jsonl is no folder$"):
        check_source(in_a_file, split_source(in_a_file))


def test_image_folder(tmp_path):
    """A folder of folders: the label is the parent's name with - and _ as spaces; the origin is the image's path."""
    (tmp_path / "green-apple_x").mkdir()
    for name in ("1.png", "2.avif"):
        (tmp_path / "green-apple_x" / name).write_bytes(picture())
    (tmp_path / "labels.csv").write_text("no image")
    settings = source(tmp_path, "image_folder")
    paths = [str(tmp_path / "green-apple_x" / name) for name in ("1.png", "2.avif")]
    assert read(settings) == [(i, {"image": path, "label": "green apple x"}) for i, path in enumerate(paths, 1)]
    assert split_source(settings)[0].origin(2) == paths[1]


def test_a_folder_of_pictures_without_classes_says_so(tmp_path, caplog):
    """Its own name would be the answer to all of them; not where there are two classes, or none is asked for."""
    for name in ("photos/1.png", "photos/2.png", "classes/cat/1.png", "classes/dog/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture())
    for settings in (
        source(tmp_path / "classes", "image_folder"),
        source(tmp_path / "photos", "image_folder", answer="A photo."),
    ):
        check_source(settings, split_source(settings))
    assert not caplog.text
    settings = source(tmp_path / "photos", "image_folder")
    check_source(settings, split_source(settings))
    assert "source s: the {label} of all its pictures is 'photos', the name of their folder; if" in caplog.text


def test_webdataset(tmp_path):
    """Members of a tar that share a key are one record, with bytes by suffix."""
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in (("d/1.jpg", b"j1"), ("d/1.txt", b"t1"), ("d/2.jpg", b"j2"), ("d/2.json", b"{}")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    found = read(source(tmp_path / "0.tar", "webdataset"))
    assert found == [(1, {"jpg": b"j1", "txt": b"t1"}), (2, {"jpg": b"j2", "json": b"{}"})]


def test_members_of_an_archive_that_make_no_sample(tmp_path):
    """Hidden members, as macOS adds them, are no data; a sample with two members of one kind is bad."""
    content = tar(**{"d/._1__jpg": b"x", "d/1__jpg": b"j", ".DS_Store": b"x", "d/2__jpg": b"a", "d/2__JPG": b"b"})
    (tmp_path / "a.tar").write_bytes(content)
    (_, first), (_, second) = read(source(tmp_path / "a.tar", "webdataset"))
    assert first == {"jpg": b"j"}
    assert isinstance(second, BadRecord) and second.detail == "sample d/2 has jpg twice"


def test_limit_counts_records_over_files(tmp_path, monkeypatch):
    """The first N records of the source, whatever the files and splits."""
    monkeypatch.setattr(compression, "LINES_BYTES", 50)
    write_lines(tmp_path / "1.jsonl", RECORDS[:5])
    write_lines(tmp_path / "2.jsonl", RECORDS[5:])
    for limit in (1, 5, 7, 10, 99):
        assert [record for _, record in read(source(tmp_path, limit=limit))] == RECORDS[:limit]


def test_limit_counts_lines_of_plain_text(tmp_path, monkeypatch):
    """The first N lines, though a record is a block of them; also over blocks, files, and lines that are no text."""
    monkeypatch.setattr(compression, "LINES_BYTES", 12)
    (tmp_path / "1.txt").write_bytes(b"one\ntwo\n\xff\nfour\nfive\n")
    (tmp_path / "2.txt.gz").write_bytes(gzip.compress(b"six\nseven\neight"))
    lines = ["one", "two", None, "four", "five", "six", "seven", "eight"]
    for limit in range(1, 10):
        records = [record for _, record in read(source(tmp_path, "text", limit=limit))]
        found = [record["text"].split() if isinstance(record, dict) else [None] for record in records]
        assert [line for record in found for line in record] == lines[:limit]


@pytest.mark.parametrize("suffix", compression.DECOMPRESSORS)
def test_a_compressed_file_without_a_byte_was_cut_off(tmp_path, suffix):
    """What has no content has a header all the same: an empty shard beside whole ones is never taken for one."""
    write_lines(tmp_path / "a.jsonl", RECORDS)
    (tmp_path / f"b.{'tar' if suffix == '.tgz' else 'jsonl'}{suffix}").touch()
    with pytest.raises((UserError, EOFError), match="it was cut off at its beginning"):
        read(source(tmp_path))


def test_a_json_array_is_cut_between_records(tmp_path, monkeypatch):
    """Several tasks share the file: the records and numbers of one, whatever stands between and in them."""
    path = tmp_path / "a.json"
    odd = ["]", "[", ",", "}{", '"', "\\", "é", "😀", {"a": [1, {"b": "],["}]}, None, 1.5, True]
    records = [*RECORDS, *({"prompt": value} for value in odd)]
    for space in (None, 2):
        for before, after in ((b"", b""), (codecs.BOM_UTF8, b"\n"), (b" \n", b"\r\n ")):
            for ascii in (True, False):
                text = json.dumps(records, indent=space, ensure_ascii=ascii)
                path.write_bytes(before + text.encode() + after)
                monkeypatch.setattr(json_array, "LINES_BYTES", 1 << 20)
                whole = read(source(path))
                assert whole == list(enumerate(records, 1))
                for size in (1, 60, 300):
                    monkeypatch.setattr(json_array, "LINES_BYTES", size)
                    assert len(split_source(source(path))) > 1 and read(source(path)) == whole


def test_a_large_row_group_is_read_in_parts(tmp_path, monkeypatch):
    """By as many tasks as it has bytes for, at most sixteen; the records and numbers of one, also up to a limit."""
    rows = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(1000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=700)
    whole = read(source(tmp_path / "a.parquet"))
    assert whole == list(enumerate(rows, 1)) and len(split_source(source(tmp_path / "a.parquet"))) == 2
    for size, splits in ((3000, None), (1, 32)):
        monkeypatch.setattr(corpus_splits, "PART_BYTES", size)
        assert read(source(tmp_path / "a.parquet")) == whole
        found = split_source(source(tmp_path / "a.parquet"))
        assert len(found) == splits or (splits is None and 4 < len(found) < 16)
        for limit in (1, 64, 699, 701, 999):
            assert read(source(tmp_path / "a.parquet", limit=limit)) == whole[:limit]


@pytest.mark.parametrize("damage", [slice(0, -1), slice(0, 100), slice(1, None)])
def test_a_json_array_that_is_none_is_refused(tmp_path, monkeypatch, damage):
    """Cut off or without its bracket, no part of it is taken for all."""
    monkeypatch.setattr(json_array, "LINES_BYTES", 50)
    (tmp_path / "a.json").write_text(json.dumps(RECORDS)[damage])
    with pytest.raises(UserError, match="neither a JSON array of records nor JSON lines"):
        check_source(source(tmp_path), split_source(source(tmp_path)))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.jsonl", r"source s: no such file or folder: /.*/nowhere\.jsonl; correct its `path`"),
        ("shard-{00..41}.tar", r"correct its `path`: patterns have no braces, .* as in shard-\*\.tar"),
        ("data.xlsx", "source s: .*data.xlsx is of no known kind"),
        ("saved", "has no split 'train', only .*test.*; set `split`"),
    ],
)
def test_paths_that_do_not_work_say_why(tmp_path, monkeypatch, path, message):
    """No file, a file of another kind, and a split that is not there: each error names the source and the cure."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.xlsx").write_text("a,b")
    datasets.DatasetDict({"test": datasets.Dataset.from_list(RECORDS)}).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=message):
        split_source(source(path))


def test_a_folder_without_data_is_told_whatever_the_split(tmp_path):
    """It has no files of another split either, which the message would list."""
    with pytest.raises(UserError, match=f"source s: no data at {tmp_path}; correct its `path`"):
        split_source(source(tmp_path, split="test"))


@pytest.mark.parametrize(("name", "split"), [("dataset_dict.json", "train"), ("test/state.json", "test")])
@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_saved_dataset_whose_records_are_damaged_is_named(tmp_path, name, split, content):
    """As where a copy was cut off."""
    datasets.DatasetDict({"test": datasets.Dataset.from_list(RECORDS)}).save_to_disk(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"^{tmp_path / name} .*: save the dataset again$"):
        split_source(source(tmp_path, split=split))


def test_every_form_of_the_configuration_is_there():
    """The configuration's list of formats and the table of formats are the same."""
    assert set(FORMATS) == set(get_args(Format))
