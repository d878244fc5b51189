"""Templates: columns, native values, text; and what they may not do."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2 import TemplateError
from jinja2.exceptions import SecurityError, UndefinedError

from lingu_ray.config.task_templates import compile_template

ROW = {
    "question": "Who?",
    "choices": {"text": ["é", "no"], "label": ["A", "B"]},
    "answerKey": "B",
    "n": 3,
    "hint": None,
}


TEXTS = (
    "{{X}} {{question}}",
    "{{X}}\n",
    "{{question ~ X}}",
    "{% set x = X %}{{x}}",
    "{{X | trim}}",
    "{{X | string}}",
    "{{X | replace('a', 'b')}}",
    "{{[X, 'a'] | join(' ')}}",
    "{{[{'a': X}] | join(attribute='a')}}",
)
"""Templates that make a text of X."""


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("question", "Who?"),
        ("n", 3),
        ("{{n}}", 3),
        ("{{- n -}}", 3),
        ("{{choices.text}}", ["é", "no"]),
        ("{{choices.label.index(answerKey)}}", 1),
        ("{{answerKey == 'A'}}", False),
        ("{{choices.text | map('upper')}}", ["É", "NO"]),
        ("{{question}} {{n}}", "Who? 3"),
        ("{{question}}\n", "Who?\n"),
        ("{% if n > 2 %}{{n}}{% endif %}", "3"),
        ("{{hint}}", None),
        ("{% if hint %}{{hint}} {% endif %}{{question}} {{n == 3}}", "Who? True"),
        ("{{question ~ ' ' ~ n}}", "Who? 3"),
        ("{{choices.text | join(', ')}}.", "é, no."),
        ("{{[choices, choices] | join('-', attribute='text.1')}}", "no-no"),
        ("{{n | string}}", "3"),
        ("{{[' a', 'b '] | map('trim') | map('replace', 'a', 'c') | list}}", ["c", "b"]),
        ("{{'a [b] c [d]' | regex_replace('\\\\[.*?\\\\]', '-')}}", "a - c -"),
    ],
)
def test_a_single_expression_keeps_its_kind(template: str, value: Any) -> None:
    """A column and a lone expression give the value itself, anything more gives text, to the last line break."""
    found = compile_template(template)(ROW)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("template", "error", "message"),
    [
        ("answer", LookupError, "no column 'answer'; there are: question"),
        ("{{answer}}", UndefinedError, "'answer' is undefined"),
        ("Answer: {{answer}}", UndefinedError, "'answer' is undefined"),
        ("{{choices.label.index('C')}}", ValueError, "not in list"),
        ("{{question.__class__.__mro__}}", SecurityError, "unsafe"),
        ("{{choices.text.append('more')}}", SecurityError, "unsafe"),
    ],
)
def test_what_does_not_fit_a_row_is_an_error(template: str, error: type[Exception], message: str) -> None:
    """Nothing missing becomes an empty text, and templates reach neither Python's inside nor change the row."""
    with pytest.raises(error, match=message):
        compile_template(template)(ROW)
    assert ROW["choices"]["text"] == ["é", "no"]


LISTED = {"names": "['é', 'no']", "codes": '["a"]', "plain": "[a] b", "one": ["x"], "by_hand": """[ "a",'it\\'s' ]"""}


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{names | as_list}}", ["é", "no"]),
        ("{{(names | as_list).index('no')}}", 1),
        ("{{codes | as_list}}", ["a"]),
        ("{{one | as_list}}", ["x"]),
        ("{{by_hand | as_list}}", ["a", "it's"]),
        ("names", "['é', 'no']"),
        ("{{names}}", "['é', 'no']"),
        ("{{[names, plain]}}", ["['é', 'no']", "[a] b"]),
        ("{{[names] | map('trim')}}", ["['é', 'no']"]),
        ("Which of {{names}}? {% if names %}{{plain[0]}}{% endif %}", "Which of ['é', 'no']? ["),
    ],
)
def test_lists_that_a_table_has_as_text(template: str, value: Any) -> None:
    """They are read by name; elsewhere they are the text that they are, an ordinary one in the end."""
    found = compile_template(template)(LISTED)
    assert found == value and type(found) is type(value)
    assert not isinstance(found, list) or {type(one) for one in found} == {str}


@pytest.mark.parametrize(
    "template",
    ["{{names.index('no')}}", "{{names[0]}}", "{{names | first}}", "{{names | length}}", "{{'é' in names}}",
     "{{names | last}}", "{% for one in names %}{{one}}{% endfor %}", "{{names | join(', ')}}"],
)  # fmt: skip
def test_letters_of_a_list_are_not_taken_for_its_entries(template: str) -> None:
    """What looks into the text of a list would find letters, and their places."""
    with pytest.raises(ValueError, match=r"the text of a list is no list: read it, as {{names \| as_list}}"):
        compile_template(template)(LISTED)


@pytest.mark.parametrize("template", ["{{plain | as_list}}", "{{3 | as_list}}", "{{\"['a'\n 'b']\" | as_list}}"])
def test_what_is_no_list_is_not_read_as_one(template: str) -> None:
    """It is told, and not made one of a single entry."""
    with pytest.raises(ValueError, match=r"no (text of a )?list"):
        compile_template(template)(LISTED)


@pytest.mark.parametrize("template", TEXTS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hint", "null would be part of a text: leave it out by {% if %}, or such rows by `where`"),
        ("nan", "nan would be part"),
        ("choices.text", r"a list would be part of a text as Python prints it: choose .* found \['é', 'no'\]"),
        ("choices", "a dict would be part"),
        ("question.encode()", "a bytes would be part"),
    ],
)
def test_python_s_words_are_no_part_of_a_text(template: str, value: str, message: str) -> None:
    """Null would be asked as `None`, and a list be expected with its brackets."""
    with pytest.raises(ValueError, match=message):
        compile_template(template.replace("X", value))(ROW | {"nan": float("nan")})


@pytest.mark.parametrize("template", ["{{question", "{{question | shout}}", "{% if n %}yes", "{{}}"])
def test_a_malformed_template_is_named(template: str) -> None:
    """It is refused with the settings, before there is a row."""
    with pytest.raises(ValueError, match="malformed") as error:
        compile_template(template)
    assert template in str(error.value) and isinstance(error.value.__cause__, TemplateError)
