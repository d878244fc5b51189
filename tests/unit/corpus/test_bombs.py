"""Small files that would be any number of gigabytes in memory are refused by name."""

import gzip
import os
import subprocess
from pathlib import Path

import pytest

from lingu_ray.config import SourceConfig
from lingu_ray.corpus import compression
from lingu_ray.corpus.splits import check_source, split_source
from lingu_ray.errors import UserError


def check(path: Path, format: str) -> None:
    """What is done with a source before a build."""
    source = SourceConfig.model_validate({"name": "s", "format": format, "path": str(path)})
    check_source(source, split_source(source))


def test_an_archive_of_holes(tmp_path: Path) -> None:
    """A sparse file of ten KB in an archive would be read as gigabytes of zeros."""
    (tmp_path / "a.txt").touch()
    os.truncate(tmp_path / "a.txt", compression.RECORD_BYTES + 1)
    subprocess.run(["tar", "--sparse", "--create", "--file=a.tar", "a.txt"], cwd=tmp_path, check=True)
    assert (tmp_path / "a.tar").stat().st_size < 1 << 20
    with pytest.raises(UserError, match=r"source s: .*/a.tar cannot be read: a.txt in it has 1,073,741,825 bytes, and"):
        check(tmp_path / "a.tar", "webdataset")


@pytest.mark.parametrize(("name", "format"), [("a.jsonl.gz", "messages"), ("a.txt.gz", "text")])
def test_a_line_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, format: str) -> None:
    """Of blanks alone, a gigabyte takes a MB; what is less than the limit is read as before."""
    (tmp_path / name).write_bytes(gzip.compress(b'{"text": "' + b" " * (12 << 20) + b'"}\n'))
    check(tmp_path / name, format)
    monkeypatch.setattr(compression, "RECORD_BYTES", 8 << 20)
    with pytest.raises(UserError, match=rf"source s: .*/{name} cannot be read: a line of it has more than 8,388,608"):
        check(tmp_path / name, format)
