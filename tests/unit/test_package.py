"""The wheel, and the source package: what someone who installs or unpacks it has."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from importlib.metadata import version
from pathlib import Path

import pytest
from commands import Command

from lingu_ray.commands import recipes
from tuning.space import shipped

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow  # builds a wheel, and starts five commands


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The project's wheel, built offline from a copy, so that nothing is left in the tree."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("lingu_ray", "tuning", "docs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(out)]
    with Command([*pip, *options, str(source)]) as command:
        command.finish()
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_has_what_the_tree_has(wheel: zipfile.ZipFile):
    """Every file of both packages is in it (the guide with its text, not as a link), and nothing else is."""
    tree = {
        str(path.relative_to(ROOT))
        for name in ("lingu_ray", "tuning")
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == tree
    assert {"lingu_ray/guide.md", "lingu_ray/py.typed", "tuning/py.typed"} <= packed
    assert wheel.read("lingu_ray/guide.md") == (ROOT / "docs/guide.md").read_bytes()


def test_the_source_package_has_what_the_repository_has(tmp_path: Path):
    """Every file of its folders, and those beside them that `make` and the README name."""
    source, out = tmp_path / "source", tmp_path / "out"
    beside = ("Makefile", "MANIFEST.in", "pyproject.toml", "LICENSE", "CITATION.cff", "README.md", "CONTRIBUTING.md")
    for name in (".ci", ".github", "benchmarks", "clusters", "docs", "examples", "lingu_ray", "tests", "tuning"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*(ROOT / name for name in beside), *ROOT.glob("requirements-*.lock")):
        shutil.copy(path, source)
    tree = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    code = f"from setuptools.build_meta import build_sdist; build_sdist({str(out)!r})"
    with Command([sys.executable, "-c", code], cwd=source) as command:
        command.finish()
    (packed,) = out.glob("*.tar.gz")
    with tarfile.open(packed) as files:
        assert tree <= {name.partition("/")[2] for name in files.getnames()}


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile):
    """Version, console command and links are in its metadata."""
    folder = f"lingu_ray-{version('lingu-ray')}.dist-info"
    metadata = message_from_string(wheel.read(f"{folder}/METADATA").decode())
    assert metadata["Version"] == version("lingu-ray")
    assert "Paper, https://arxiv.org/abs/2604.00829" in metadata.get_all("Project-URL", [])
    assert "lingu-ray = lingu_ray.__main__:main" in wheel.read(f"{folder}/entry_points.txt").decode()


def test_the_installed_command_works_without_the_tree(wheel: zipfile.ZipFile, tmp_path: Path):
    """Unpacked elsewhere, the console command shows recipes and spaces, and prints the guide."""
    wheel.extractall(tmp_path)

    def run(*arguments: str) -> str:
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv[0] = 'lingu-ray'; "
        command = [sys.executable, "-I", "-c", code + "from lingu_ray.__main__ import main; main()", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("guide", "--path").strip() == str(tmp_path / "lingu_ray" / "guide.md")
    assert run("guide") == (ROOT / "docs/guide.md").read_text("utf-8")
    assert all(name in run("train", "--help") for name in recipes())
    assert all(name in run("sweep", "--help") for name in shipped())
    assert run("--version") == f"lingu_ray {version('lingu-ray')}\n"
