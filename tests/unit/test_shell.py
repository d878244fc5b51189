"""Printed paths and commands: absolute, and read back by a shell as they were meant."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lingu_ray.shell import model_word, shell_word


def test_paths_are_absolute_and_strings_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path starts from the current directory, without dots in it; a hub id or a server's address is not touched."""
    monkeypatch.chdir(tmp_path)
    assert shell_word(Path("runs/../demo")) == f"{tmp_path}/demo"
    assert shell_word("owner/model") == "owner/model"
    assert shell_word("http://host:5000") == "http://host:5000"


def test_sqlite_addresses_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both forms of a SQLite address, relative and absolute, name the same file from any directory."""
    monkeypatch.chdir(tmp_path)
    assert shell_word("sqlite:///runs/mlflow.db") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert shell_word(f"sqlite:///{tmp_path}/mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize("name", ["a b", "it's", "$HOME", "a;b", "é (1)"])
def test_a_shell_reads_one_word(tmp_path: Path, name: str) -> None:
    """Whatever a folder is called, the shell gives the command one argument: the folder's absolute path."""
    (tmp_path / name).mkdir()
    words = [shell_word(tmp_path / name), model_word("teacher", str(tmp_path / name))]
    said = subprocess.run(f"printf '%s\\n' {' '.join(words)}", shell=True, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == [f"{tmp_path}/{name}", f"teacher={tmp_path}/{name}"]


def test_a_hub_id_is_no_path() -> None:
    """What does not exist here is left to the hub."""
    assert model_word("teacher", "owner/model") == "teacher=owner/model"
