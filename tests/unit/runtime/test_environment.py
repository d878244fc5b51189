"""What a run was made with: versions, commit, hardware, and what changed when it was resumed."""

from __future__ import annotations

import json
import logging
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

import lingu_ray
from lingu_ray.runtime.tracking.environment import git_state, read_environment, record_environment, with_earlier

SECRET = "s3cret-token"


def git(folder: Path, *arguments: str) -> str:
    """Run git as somebody."""
    who = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    return subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A package in a checkout whose remote has a password in its address."""
    package = tmp_path / "project" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    git(package.parent, "init", "-q")
    git(package.parent, "remote", "add", "origin", f"https://me:{SECRET}@example.org/project.git")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-q", "-m", "first")
    return package


def test_versions_and_machine_are_recorded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A flat map of texts, said in one line however often it is recorded."""
    with caplog.at_level(logging.INFO, "lingu_ray"):
        recorded = record_environment(tmp_path)
        record_environment(tmp_path)
    assert json.loads((tmp_path / "environment.json").read_text()) == read_environment(tmp_path) == recorded
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in recorded.items())
    assert recorded["lingu_ray"] == lingu_ray.__version__ and recorded["python"] == platform.python_version()
    assert recorded["torch"] == version("torch") and recorded.keys() >= {"ray", "transformers", "cpu", "cpu.cores"}
    assert recorded["memory"].endswith("GiB")
    lines = [record.getMessage() for record in caplog.records if "environment" in record.getMessage()]
    assert len(lines) <= 1  # none where another test of this process was first
    assert read_environment(tmp_path / "elsewhere") == {}


def test_what_changed_on_resume_is_listed() -> None:
    """The newest value is kept; earlier ones stand beside it, oldest first; what came back is listed, too."""
    first, second = {"torch": "1", "gpus": "A"}, {"torch": "2", "nodes": "1 × (2 CPU)"}
    resumed = with_earlier(first, second)
    assert resumed == second | {"earlier.torch": "1", "earlier.gpus": "A"}
    assert with_earlier(resumed, second) == resumed
    assert with_earlier(resumed, first) == first | {
        "earlier.torch": "1; 2",
        "earlier.gpus": "A",
        "earlier.nodes": "1 × (2 CPU)",
    }


def test_commits_that_leave_the_package_as_it_is(checkout: Path) -> None:
    """The tree stays, as of recipes and notes that are kept beside it; it is another one once the package changes."""
    first = git_state(checkout)
    (checkout.parent / "recipe.yaml").touch()
    git(checkout.parent, "add", "recipe.yaml")
    assert git_state(checkout) == first
    git(checkout.parent, "commit", "-q", "-m", "second")
    second = git_state(checkout)
    assert second["git.commit"] != first["git.commit"] and second["git.tree"] == first["git.tree"]
    (checkout / "__init__.py").write_text("changed = True")
    git(checkout.parent, "commit", "-q", "-a", "-m", "third")
    assert git_state(checkout)["git.tree"] != first["git.tree"]


def test_commit_of_the_source(checkout: Path) -> None:
    """The commit, and whether the package's tracked files differ from it; new files beside them do not count."""
    clean = git_state(checkout)
    tree = git(checkout, "rev-parse", "HEAD:package").strip()
    assert clean == {"git.commit": git(checkout, "rev-parse", "HEAD").strip(), "git.tree": tree, "git.dirty": "false"}
    (checkout.parent / "notes.txt").touch()
    assert git_state(checkout) == clean
    (checkout / "__init__.py").write_text("changed = True")
    assert git_state(checkout) == clean | {"git.dirty": "true"}
    assert SECRET not in str(git_state(checkout))


def test_no_commit_of_somebody_else(checkout: Path, tmp_path: Path) -> None:
    """A package that is installed into another project's checkout, or lies in none, has no commit."""
    installed = checkout.parent / ".venv" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    assert git_state(installed) == {}
    (tmp_path / "__init__.py").touch()
    assert git_state(tmp_path) == {}
