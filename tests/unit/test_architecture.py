"""The rooms of docs/architecture.md: every module has one, and imports run down its table only."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("lingu_ray", "tuning")


@cache
def rooms() -> dict[str, tuple[set[str], set[str]]]:
    """Rows of the table, top to bottom: a room's name, its modules and folders, and the rooms it may import."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text.partition("## Rooms")[2].partition("\n## ")[0]
    found: dict[str, tuple[set[str], set[str]]] = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if line.startswith("| **") and len(cells) == 4:
            name, parts, _, imports = cells
            allowed = {word.strip() for word in imports.split(",")} - {"–"}
            found[name.strip("*")] = set(re.findall(r"`([\w/.]+)`", parts)), allowed
    return found


@cache
def room_of(path: Path) -> str | None:
    """The room of a source file: the one that names the file, or a folder above it."""
    inside = path.relative_to(ROOT)
    names = [str(inside), *(f"{folder}/" for folder in inside.parents)]
    short = [name.removeprefix("lingu_ray/") for name in names if name != "lingu_ray/"]
    return next((room for name in short for room, (parts, _) in rooms().items() if name in parts), None)


def modules() -> list[Path]:
    """All source files of the packages."""
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@cache
def names_imported(path: Path) -> list[tuple[int, str, bool]]:
    """Line and dotted name of every import of a module, those inside functions too, and whether it is at the top."""
    module, found = ast.parse(path.read_text(encoding="utf-8")), []
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, node in module.body) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [(node.lineno, f"{node.module}.{alias.name}", node in module.body) for alias in node.names]
    return found


def is_ours(name: str) -> bool:
    return name.partition(".")[0] in PACKAGES


def imported(path: Path) -> Iterator[tuple[int, Path]]:
    """Line and file of every import of our own packages."""
    return ((line, source(name)) for line, name, _ in names_imported(path) if is_ours(name))


def brought(path: Path) -> set[str]:
    """The libraries that come with a module: imported at the top of it, or of ours that it brings."""
    left, seen, libraries = [path], set[Path](), set[str]()
    while left:
        if (one := left.pop()) in seen:
            continue
        seen.add(one)
        for name in (name for _, name, at_top in names_imported(one) if at_top):
            if is_ours(name):
                left.append(source(name))
            else:
                libraries.add(name.partition(".")[0])
    return libraries


@cache
def source(name: str) -> Path:
    """The file behind a dotted name, which may end in something that the file defines."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:length])
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.exists():
                return file
    raise AssertionError(f"{name} is no module of ours")


def test_the_table_names_what_there_is() -> None:
    """Each module has a room, each name in the table exists, and rooms import only rooms above them in the table."""
    table = rooms()
    assert len(table) > 8
    homeless = [str(path.relative_to(ROOT)) for path in modules() if room_of(path) is None]
    assert not homeless, f"not in the table of docs/architecture.md: {homeless}"
    for name in {part for parts, _ in table.values() for part in parts}:
        assert (ROOT / "lingu_ray" / name).exists() or (ROOT / name).exists(), name
    order = list(table)
    for room, (_, allowed) in table.items():
        assert allowed <= set(order[: order.index(room)]), f"{room} would import upward"


def test_imports_run_one_way() -> None:
    """Each module imports its own room, and those that the table allows it."""
    rooms_of_modules = {path: room for path in modules() if (room := room_of(path))}
    assert len(rooms_of_modules) > 300
    wrong = [
        f"{path.relative_to(ROOT)}:{line} ({room}) imports {room_of(target)}"
        for path, room in rooms_of_modules.items()
        for line, target in imported(path)
        if room_of(target) not in {room, *rooms()[room][1]}
    ]
    assert not wrong


@pytest.mark.parametrize("module", ["runtime/training/worker.py", "runtime/teacher/teachers.py", "corpus/build.py"])
def test_what_only_the_driver_needs_stays_there(module: str) -> None:
    """Ray's processes import neither MLflow nor what draws: each of them would start seconds later."""
    libraries = brought(ROOT / "lingu_ray" / module)
    assert {"ray", "torch"} <= libraries
    assert not libraries & {"mlflow", "sqlalchemy", "matplotlib"}


def test_documents_name_files_that_exist() -> None:
    """Every path of the repository that a document names in code style is there."""
    pattern = re.compile(r"`((?:lingu_ray|tuning|tests|benchmarks|examples|docs|\.github|\.ci)/[\w/.-]+)`")
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    named = {(page.name, name) for page in documents for name in pattern.findall(page.read_text())}
    assert len(named) > 20
    assert not [(page, name) for page, name in sorted(named) if not (ROOT / name).exists()]


def test_whether_code_of_a_model_is_run_is_said_everywhere() -> None:
    """Where it is not, Transformers asks on the terminal: of whatever class chooses a model's own."""
    calls = [
        (path, node)
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "from_pretrained"
        and isinstance(node.func.value, ast.Name)
        and (node.func.value.id.startswith("Auto") or node.func.value.id == "loader")
    ]
    assert len(calls) > 5
    unsaid = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path, call in calls
        if not {"trust_remote_code", "state_dict"} & {keyword.arg for keyword in call.keywords}
    ]
    assert not unsaid
