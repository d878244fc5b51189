"""The YAML of settings, and of whatever else is read or written as YAML: one reader, one writer."""

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lingu_ray.config import strict_yaml
from lingu_ray.errors import UserError

ROOT = Path(__file__).parents[3]
TEXT = st.text(st.characters(exclude_categories=["Cs"]))  # halves of surrogate pairs are no text
_WORDS = (
    "no Yes on y null ~ true 1 017 0x1f 1_000 12:30 1e-5 .5 .inf .NaN 2024-01-01 << = {a} *a &a !a %a @a `a --- ..."
)
LOOKS_LIKE_MORE = st.sampled_from([*_WORDS.split(), "", " a ", "- a", "a: b", "a #b", "a\n", "\n a", "\u2028"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT | LOOKS_LIKE_MORE
TREES = st.recursive(
    SCALARS, lambda inside: st.lists(inside, max_size=4) | st.dictionaries(TEXT | LOOKS_LIKE_MORE, inside, max_size=4)
)


def test_scalars_are_those_of_yaml_1_2():
    """`1e-5` is a number, as in every other language; `no`, `12:30` and dates are text."""
    tree, _ = strict_yaml.load("{a: 1e-5, b: .5, c: no, d: 12:30, e: 2024-01-01, f: null, g: true, h: -3, i: 017}", "x")
    assert list(tree.values()) == [1e-5, 0.5, "no", "12:30", "2024-01-01", None, True, -3, "017"]


def test_only_plain_yaml_is_read():
    """Tags that would make Python objects are refused."""
    with pytest.raises(UserError, match="not valid YAML"):
        strict_yaml.load("a: !!python/object/apply:os.getcwd []", "x")


@pytest.mark.slow
@settings(database=None, derandomize=True, deadline=None, max_examples=300)
@given(TREES, st.booleans())
def test_what_is_written_is_read_back(tree: Any, inline: bool):
    """Any tree of text, numbers, true, false and null comes back equal, types included."""
    again, _ = strict_yaml.load(strict_yaml.dump(tree, inline=inline), "x")
    assert _typed(again) == _typed(tree)


@pytest.mark.slow
@settings(database=None, derandomize=True, deadline=None, max_examples=300)
@given(TREES)
def test_other_readers_read_the_same(tree: Any):
    """PyYAML's own loader, which takes `no` for false, finds in what is written what was meant: such text is quoted."""
    assert _typed(yaml.safe_load(strict_yaml.dump(tree))) == _typed(tree)


def _typed(tree: Any) -> Any:
    """A tree in which 1, 1.0 and true are not equal."""
    if isinstance(tree, dict):
        return {key: _typed(value) for key, value in tree.items()}
    return [_typed(item) for item in tree] if isinstance(tree, list) else (type(tree).__name__, repr(tree))


def test_there_is_one_reader():
    """No other module of the project imports a YAML library: two readers would disagree about `no`."""
    importing = [
        str(path.relative_to(ROOT))
        for package in ("lingu_ray", "tuning", "benchmarks", "examples")
        for path in (ROOT / package).rglob("*.py")
        if any("yaml" in name.split(".")[0] for name in _imports(path))
    ]
    assert importing == ["lingu_ray/config/strict_yaml.py"]


def _imports(path: Path) -> list[str]:
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return names + [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
