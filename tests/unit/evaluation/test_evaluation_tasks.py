"""Items are read as written, and every bad one is refused by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tiny import picture

from lingu_ray.config import EvaluationConfig, TaskConfig
from lingu_ray.errors import UserError
from lingu_ray.evaluation.tasks import Choice, Passage, Question, load_task


def config(path: Path, type: str, **more: Any) -> TaskConfig:
    """A task of the type on the file."""
    kind = "vision" if type == "exact_match" else "language"
    return TaskConfig.model_validate({"name": "t", "kind": kind, "type": type, "path": str(path), **more})


def write(path: Path, *records: object) -> Path:
    """A JSONL file of the records (a string stands as it is)."""
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


def test_both_forms_of_multiple_choice(tmp_path: Path) -> None:
    """`query, choices` varies the continuation, `context_options` the context; the delimiter stands between."""
    path = write(
        tmp_path / "a.jsonl",
        {"query": "Q", "choices": ["é", "no"], "gold": 1},
        "",
        {"context_options": ["A so B", "A so C"], "continuation": "won.", "gold": 0},
    )
    first, second = load_task(config(path, "multiple_choice", delimiter="\nAnswer: ")).items
    assert first == Choice(1, (("Q", "\nAnswer: é"), ("Q", "\nAnswer: no")), (2, 2), 1)
    assert second == Choice(3, (("A so B", "\nAnswer: won."), ("A so C", "\nAnswer: won.")), (4, 4), 0)


def test_passages(tmp_path: Path) -> None:
    """A text is scored from its first token, a continuation after its context."""
    path = write(tmp_path / "a.jsonl", {"text": "All of it."}, {"context": "He took the", "continuation": "signs"})
    assert load_task(config(path, "perplexity")).items == (
        Passage(1, "", "All of it."),
        Passage(2, "He took the", " signs"),
    )


def test_questions_find_their_images_from_the_file(tmp_path: Path) -> None:
    """Image paths start at the JSONL file's folder; one or several; answers likewise."""
    (tmp_path / "img").mkdir()
    for seed in (1, 2):
        (tmp_path / "img" / f"{seed}.png").write_bytes(picture(seed))
    path = write(
        tmp_path / "a.jsonl",
        {"question": "Which?", "answer": "one", "image": "img/1.png"},
        {"question": "<image> or <image>?", "answer": ["two", "2"], "image": ["img/1.png", "img/2.png"]},
    )
    first, second = load_task(config(path, "exact_match")).items
    assert first == Question(1, "Which?", ("one",), (tmp_path / "img/1.png",))
    assert second == Question(2, "<image> or <image>?", ("two", "2"), (tmp_path / "img/1.png", tmp_path / "img/2.png"))


def test_limit_takes_the_first_items(tmp_path: Path) -> None:
    """`limit` is exact."""
    path = write(tmp_path / "a.jsonl", *({"text": f"text {i}"} for i in range(5)))
    assert [item.line for item in load_task(config(path, "perplexity", limit=3)).items] == [1, 2, 3]


@pytest.mark.parametrize(
    ("type", "record", "message"),
    [
        ("perplexity", "{not json", "not JSON"),
        ("perplexity", [1], "not a JSON object"),
        ("perplexity", {"text": " "}, "`text`"),
        ("perplexity", {"context": "a"}, "`continuation`"),
        ("multiple_choice", {"query": "Q", "gold": 0}, "neither"),
        ("multiple_choice", {"query": "Q", "choices": ["a", "b"], "gold": 2}, "`gold`"),
        ("multiple_choice", {"query": "Q", "choices": ["a", "b"], "gold": True}, "`gold`"),
        ("multiple_choice", {"query": "Q", "choices": ["a"], "gold": 0}, "two or more"),
        ("multiple_choice", {"query": "Q", "choices": ["a", ""], "gold": 0}, "`choices`"),
        ("exact_match", {"question": "Q", "answer": "a"}, "`image`"),
        ("exact_match", {"question": "Q", "answer": "a", "image": "none.png"}, "none.png"),
        ("exact_match", {"question": "Q", "answer": "a", "image": "broken.png"}, "broken.png"),
        ("exact_match", {"question": "Q", "image": "good.png"}, "`answer`"),
        ("exact_match", {"question": "<image><image>", "answer": "a", "image": "good.png"}, "2 <image> for 1"),
    ],
)
def test_bad_items_are_refused_by_file_and_line(tmp_path: Path, type: str, record: object, message: str) -> None:
    """One bad item stops the evaluation before a model is loaded: no score is made from fewer items than it says."""
    (tmp_path / "good.png").write_bytes(picture(0))
    (tmp_path / "broken.png").write_bytes(picture(0)[:60])
    path = write(tmp_path / "a.jsonl", "", record)
    with pytest.raises(UserError, match=message) as error:
        load_task(config(path, type))
    assert f"{path}, line 2" in str(error.value)


def test_no_file_no_items_too_few_items(tmp_path: Path) -> None:
    """Each is an error that names the task and the file."""
    with pytest.raises(UserError, match=r"t: no file .*gone\.jsonl"):
        load_task(config(tmp_path / "gone.jsonl", "perplexity"))
    with pytest.raises(UserError, match="holds no items"):
        load_task(config(write(tmp_path / "empty.jsonl"), "perplexity"))
    with pytest.raises(UserError, match=r"limit is 2, but .* holds 1"):
        load_task(config(write(tmp_path / "one.jsonl", {"text": "x"}), "perplexity", limit=2))


def test_kind_and_type_must_go_together() -> None:
    """Perplexity of text says nothing of vision; refused with the settings."""
    with pytest.raises(ValidationError, match="does not go with"):
        TaskConfig(name="t", kind="vision", type="perplexity", path="x")


def test_two_tasks_of_one_name_are_refused() -> None:
    """They would write the same files."""
    task = TaskConfig(name="t", kind="language", type="perplexity", path="x")
    with pytest.raises(ValidationError, match="found twice: t"):
        EvaluationConfig(tasks=(task, task))
