"""What a source's fingerprint sees of its data, and what it costs to look."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import picture

from lingu_ray.config import SourceConfig
from lingu_ray.content import BLOCK
from lingu_ray.corpus import fingerprint, named_file
from lingu_ray.corpus.fingerprint import source_content
from lingu_ray.corpus.readers import FileSplit
from lingu_ray.corpus.splits import split_source
from lingu_ray.errors import UserError


def source(path: Path, format: Any = "prompt_completion") -> SourceConfig:
    return SourceConfig(name="s", format=format, path=str(path))


def content(path: Path, format: Any = "prompt_completion") -> str:
    return source_content(source(path, format), split_source(source(path, format)), warn=True)


def content_of(paths: list[Path]) -> str:
    """The fingerprint of text files, without reading their records."""
    return source_content(source(paths[0], "text"), [FileSplit("text", str(path)) for path in paths])


def change(path: Path, at: int) -> None:
    """Change a byte of a file."""
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.slow
def test_every_byte_counts_of_many_small_files(tmp_path: Path):
    """However many files there are: a changed byte in any of them, and at any place, makes another corpus."""
    paths = [tmp_path / f"{index:05d}.txt" for index in range(8300)]
    for path in paths:
        path.write_bytes(b"a label, and a text")
    seen = {content_of(paths)}
    for index, at in ((1, 0), (4321, 18)):
        change(paths[index], at)
        seen.add(content_of(paths))
    assert len(seen) == 3


@pytest.mark.slow
@pytest.mark.parametrize("read", [1 << 22, 1 << 17])
def test_of_much_data_every_file_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: int):
    """Beyond the bytes that are read in all, each file's first and last byte still count."""
    monkeypatch.setattr(fingerprint, "READ", read)
    paths = [tmp_path / f"{index}.txt" for index in range(20)]
    for index, path in enumerate(paths):
        path.write_bytes(bytes(6 * BLOCK) if index else bytes(5))
    seen = {content_of(paths)}
    for path in (paths[0], paths[7], paths[19]):
        for at in (0, path.stat().st_size - 1):
            change(path, at)
            seen.add(content_of(paths))
    assert len(seen) == 7


def test_what_is_read_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All that fits is read whole; of more at most twice the bound, by size, and none gets less than an equal share."""
    paths = [str(tmp_path / f"{index}.txt") for index in range(5)]
    for index, path in enumerate(paths):
        Path(path).write_bytes(bytes(1000 * index))
    shares = fingerprint._shares(paths)
    assert all(share >= 1000 * index for index, share in enumerate(shares))
    monkeypatch.setattr(fingerprint, "READ", 1000)
    shares = fingerprint._shares(paths)
    assert shares == [200, 200, 200, 300, 400] and sum(shares) <= 2000
    monkeypatch.setattr(fingerprint, "WHOLE", 1000)
    assert fingerprint._shares(paths) == [200, 250, 250, 250, 250]


def test_names_of_labels_belong_to_the_data(tmp_path: Path):
    """Those of a file beside the data; what else stands in it, or where the data have their own names, does not."""
    features = datasets.Features({"label": datasets.ClassLabel(names=["cat", "dog"]), "q": datasets.Value("string")})
    dataset = datasets.Dataset.from_dict({"label": [1], "q": ["?"]}, features=features)

    def write_names(folder: Path, *names: str, **more: str) -> None:
        changed = datasets.Features(features | {"label": datasets.ClassLabel(names=list(names))})
        (folder / "dataset_info.json").write_text(json.dumps({"features": changed.to_dict()} | more))

    for name, table in (
        ("bare", dataset.data.table.replace_schema_metadata(None)),
        ("bare2", pa.table({"q": ["?"]})),
        ("own", dataset.with_format("arrow")[:]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(2):
            pq.write_table(table, folder / f"{number}.parquet")
        without = content(folder)
        write_names(folder, "cat", "dog")
        first = content(folder)
        write_names(folder, "dog", "cat")
        second = content(folder)
        assert (len({without, first, second}) == 3) == (name == "bare"), name
        assert name == "bare" or without == first == second


def test_images_that_are_not_given_are_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file system that fails is an error, for missing images would be another corpus; one that is gone is one."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "?", "completion": "a", "image": "a.png"}) + "\n")
    gone = content(tmp_path / "a.jsonl")
    (tmp_path / "a.png").write_bytes(picture())
    there = content(tmp_path / "a.jsonl")
    assert gone != there
    identity = fingerprint.file_identity

    def failing(path: Any, *blocks: int) -> str:
        if str(path).endswith(".png"):
            raise OSError(116, "Stale file handle")
        return identity(path, *blocks)

    monkeypatch.setattr(named_file, "WAITS_S", (0.0,))
    monkeypatch.setattr(fingerprint, "file_identity", failing)
    with pytest.raises(UserError, match=r"a.png: the file system does not give it \(Stale file handle\)"):
        content(tmp_path / "a.jsonl")


def test_a_copy_of_a_file_is_told(tmp_path, caplog):
    """Its rows are trained on once more; files that differ, in a byte or in their kind, are no copies."""
    for name, text in (("a.jsonl", "1"), ("b.jsonl", "2"), ("c.jsonl", "1"), ("d.txt", "1")):
        (tmp_path / name).write_text(json.dumps({"prompt": "?", "completion": text}) + "\n", encoding="utf-8")
    content(tmp_path)
    assert f"(1, the first is {tmp_path / 'c.jsonl'} of {tmp_path / 'a.jsonl'})" in caplog.text
    caplog.clear()
    source_content(source(tmp_path), split_source(source(tmp_path)))  # as a build asks again
    (tmp_path / "c.jsonl").unlink()
    content(tmp_path)
    assert "copies" not in caplog.text
