"""Content identity: the same wherever a file lies, another one when what it holds changes."""

import os
import shutil
from pathlib import Path

import pytest

from lingu_ray.content import BLOCK, file_identity, fingerprint, model_identity


def test_place_and_time_do_not_count(tmp_path: Path):
    """A copy under another name and time has the identity of its original."""
    (tmp_path / "a").write_bytes(os.urandom(100_000))
    shutil.copy(tmp_path / "a", tmp_path / "b")
    os.utime(tmp_path / "b", (1, 1))
    assert file_identity(tmp_path / "a") == file_identity(tmp_path / "b")


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 3])
def test_every_byte_of_a_small_file_counts(tmp_path: Path, size: int):
    """A changed, added or missing byte anywhere gives another identity."""
    content = bytearray(os.urandom(size))
    path = tmp_path / "a"
    path.write_bytes(content)
    seen = {file_identity(path)}
    for place in {0, size // 2, size - 1} if size else ():
        changed = content.copy()
        changed[place] ^= 1
        path.write_bytes(changed)
        seen.add(file_identity(path))
    path.write_bytes(content + b"\0")
    seen.add(file_identity(path))
    assert len(seen) == 2 + (len({0, size // 2, size - 1}) if size else 0)


def test_a_large_file_is_sampled_from_its_first_to_its_last_byte(tmp_path: Path):
    """With few blocks read, head, tail and size count."""
    content = bytearray(os.urandom(20 * BLOCK + 7))
    path = tmp_path / "a"
    path.write_bytes(content)
    before = file_identity(path, blocks=3)
    for place in (0, len(content) - 1):
        content[place] ^= 1
        path.write_bytes(content)
        assert file_identity(path, blocks=3) != before
        content[place] ^= 1
    path.write_bytes(content[:-1])
    assert file_identity(path, blocks=3) != before


def test_fingerprints_of_values() -> None:
    """The order of keys does not count, that of a list does; it is the same in every process and version."""
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint([1, 2]) != fingerprint([2, 1])
    assert fingerprint({"a": 1, "b": "é"}, digits=16) == "f4de2e1f6519226c"


def test_models(tmp_path: Path):
    """A moved folder is the same model, also with a new card; other weights are another one; a hub id names itself."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    before = model_identity(str(folder))
    shutil.move(folder, tmp_path / "moved")
    (tmp_path / "moved" / "README.md").write_text("card")
    assert model_identity(str(tmp_path / "moved")) == before
    (tmp_path / "moved" / "model.safetensors").write_bytes(b"weightz")
    assert model_identity(str(tmp_path / "moved")) != before
    assert model_identity("org/model", "v1") != model_identity("org/model")
