"""The YAML of settings, and of whatever else is read or written as YAML: one reader, one writer."""

import ast
import re
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
    """Tags that would make Python objects, dates and bytes are refused."""
    for tagged in ("python/object/apply:os.getcwd []", "python/name:os.system ''", "timestamp 2024-99-99", "binary x"):
        with pytest.raises(UserError, match="x:1: not valid YAML here: tag "):
            strict_yaml.load(f"a: !!{tagged}", "x")


@pytest.mark.parametrize("text", [600 * "[", 600 * "[" + 600 * "]", 600 * "{a: ", 600 * "- ", 5000 * "9"])
def test_what_python_cannot_hold_is_an_error_with_the_cure(text):
    """Brackets by the hundred, which a file of another kind may have, and digits."""
    with pytest.raises(UserError, match=r"f\.yaml.*: (nested too deep to be settings: close|a number of 5000 digits)"):
        strict_yaml.load(text, "f.yaml")


def test_an_alias_is_what_it_stands_for():
    """Also where that merges another mapping (`<<`) and changes a key of it: reading leaves the document as it is."""
    text = "base: &base {a: 1, b: 2}\nx: &x\n  <<: *base\n  a: 3\ny: *x\nz:\n  <<: [*x, {b: 8, c: 9}]\n  a: 7\n"
    tree, lines = strict_yaml.load(text, "f.yaml")
    assert tree["x"] == tree["y"] == {"a": 3, "b": 2} and tree["z"] == {"a": 7, "b": 2, "c": 9}
    assert (lines["y", "a"], lines["y", "b"], lines["z", "a"]) == (4, 1, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: &x\n  c: *x\n", "f.yaml:3: b.c contains itself, by an alias"),
        ("a: &x [1, *x]", "f.yaml:1: a.1 contains itself, by an alias"),
        ("a: &x {<<: *x}", "f.yaml:1: a contains itself, by an alias"),
        ("a: &x {b: {<<: *x}}", "f.yaml:1: a.b contains itself, by an alias"),
        ("a: {<<: &x {<<: *x}}", "f.yaml:1: a contains itself, by an alias"),
        ("a: 1\nb: {<<: 3}", "f.yaml:2: << merges a mapping, or a list of mappings"),
        ("a: &x {b: 1, b: 2}", "f.yaml:1: a.b is given twice"),
        ("a:\n  b: {c:1}", "f.yaml:2: 'c:1' has no value: YAML wants a blank after the colon"),
        ("a: 1\nprompt: {{question}}", "f.yaml:2: a key must be plain text; quote text that begins with {"),
    ],
)
def test_an_alias_that_cannot_be_followed_is_told(text: str, message: str):
    """A value inside itself, and a merge of what is no mapping: with file and line."""
    with pytest.raises(UserError, match=re.escape(message)):
        strict_yaml.load(text, "f.yaml")


@pytest.mark.parametrize(
    ("first", "further"), [("[1]", "[{}]"), ("{x: 1}", "{{<<: [{}]}}"), ("{x: [1]}", "[[{}], {{y: 2}}]")]
)
def test_aliases_that_multiply_are_refused(first: str, further: str):
    """Nine aliases of nine aliases, and so on, in lists and in merges, would fill the memory."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{i + 1}: &a{i + 1} {further.format(', '.join([f'*a{i}'] * 9))}" for i in range(12)]
    with pytest.raises(UserError, match=r"f\.yaml:\d+: a\d+\S* is where aliases .* more than 100000 values: write"):
        strict_yaml.load("\n".join(lines), "f.yaml")


def test_many_aliases_of_one_value_are_read():
    """As where each source of a long list merges the same defaults."""
    tree, _ = strict_yaml.load("d: &d {x: 1, y: 2}\ns: [" + "{<<: *d, z: 3}, " * 500 + "]", "f.yaml")
    assert tree["s"] == [{"x": 1, "y": 2, "z": 3}] * 500


KEY = "a key is written as `key: value`, indented like the keys beside it"


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        ("path: *.jsonl", "quote text that begins with *"),
        ("path: *rows", "quote text that begins with *"),
        ("prompt: Question: {q}", "quote text with a colon and a blank in it"),
        ("name:mine\nseed: 3", f"{KEY}; quote text with a colon and a blank in it"),
        ("name: mine\n seed: 3", f"{KEY}; quote text with a colon and a blank in it"),
        ('a: 1\nb: "6\nc: 3\n', "close the quote that opens on line 2"),
        ("a: 1\nb: [1, 2\nc: 3", "close the bracket that opens on line 2, or put the comma that is missing"),
        ("a: {b: 1 c: 2}", "close the bracket that opens on line 1, or put the comma that is missing"),
        ("a:\n  - x: 1\n   y: 2", "indent what belongs together alike, and quote text with quotes or brackets in it"),
        ("a: 'it's'", "indent what belongs together alike, and quote text with quotes or brackets in it"),
        ("a:\n\tb: 1", "indent with blanks instead of tabs"),
        ("answer: @name", "quote text that begins with such a sign"),
    ],
)
def test_errors_of_syntax_name_their_cure(text: str, cure: str):
    """Text that needs quotes, such as patterns and format strings; blanks, tabs, brackets and commas."""
    with pytest.raises(UserError, match=rf"f\.yaml:\d: not valid YAML: .*; {re.escape(cure)}$"):
        strict_yaml.load(text, "f.yaml")


@pytest.mark.parametrize("character", ["\0", "\x07", "\x1b", "\ud800"])
def test_a_character_that_no_yaml_has_is_told(character: str):
    """Bytes that are no text file, or half a character, are an error with file and line."""
    with pytest.raises(UserError, match=re.escape(f"f.yaml:2: not valid YAML: the character {character!a}; remove it")):
        strict_yaml.load(f"a: 1\nb: x{character}", "f.yaml")


@pytest.mark.parametrize("tagged", ["float x", "int x", "int ''", "int 0x1f", "bool no", "null x"])
def test_a_tag_that_does_not_fit_is_told(tagged: str):
    """`!!float x` is an error with file and line; a tag that fits is followed."""
    with pytest.raises(UserError, match=rf"f\.yaml:2: not valid YAML: .* does not fit its tag !!{tagged.split()[0]}$"):
        strict_yaml.load(f"a: 1\nb: !!{tagged}", "f.yaml")
    tree, _ = strict_yaml.load("{a: !!float 3, b: !!int '3', c: !!str 3, d: !!bool true, e: !!null ''}", "f.yaml")
    assert _typed(tree) == _typed({"a": 3.0, "b": 3, "c": "3", "d": True, "e": None})


def test_a_quoted_key_may_have_a_colon_and_no_text():
    """It says what it means; `{c:1}` does not."""
    assert strict_yaml.load("{':': '', 'a:1': '', \"b:\": x}", "f.yaml")[0] == {":": "", "a:1": "", "b:": "x"}


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
    text = path.read_text("utf-8")
    nodes = list(ast.walk(ast.parse(text if "yaml" in text else "")))  # most have no such word, and parsing takes long
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return names + [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
