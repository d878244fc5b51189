"""Answers that ended at `max_new_tokens` are counted: a model that talks at length loses points by it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from tiny import picture, tiny_student, tiny_teacher

from lingu_ray.config import EvaluationConfig, TaskConfig
from lingu_ray.evaluation.engines.engine import Answer, GenerateRequest
from lingu_ray.evaluation.engines.load import load_model_files
from lingu_ray.evaluation.engines.prompts import Prompts
from lingu_ray.evaluation.item_files import Stamp
from lingu_ray.evaluation.measure import TaskRun
from lingu_ray.evaluation.recovery import summarize
from lingu_ray.evaluation.recovery_json import read_recovery
from lingu_ray.evaluation.replicas import Chunk
from lingu_ray.evaluation.tasks.load import load_task, load_tasks
from lingu_ray.evaluation.tracking import figures_of
from lingu_ray.report.evaluation_page import write_evaluation

ITEMS = 40


def test_an_answer_is_cut_off_where_nothing_else_ends_it(tmp_path: Path) -> None:
    """Neither its end token, nor a stop text, nor tokens that it did not use."""
    tiny_student(tiny_teacher(), folder=tmp_path)
    prompts = Prompts(load_model_files(tmp_path))
    said = prompts.tokenizer("for x in it", add_special_tokens=False).input_ids
    request = GenerateRequest("What?", max_new_tokens=len(said))
    end = prompts.ends[-1]
    assert prompts.answer(request, said) == ("for x in it", True)
    assert not prompts.answer(request, [*said[:-1], end]).cut_off
    assert not prompts.answer(GenerateRequest("What?", (), len(said), ("in",)), said).cut_off
    assert not prompts.answer(GenerateRequest("What?", max_new_tokens=len(said) + 1), said).cut_off


@pytest.mark.parametrize(("cut_off", "is_told"), [(0, False), (2, False), (3, True)])
def test_cut_off_answers_are_counted(
    cut_off: int, is_told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Results and page have the share where there is one; above a twentieth a warning names model, task and setting."""
    items = [{"question": f"{i}?", "answer": f"right {i}", "image": f"{i}.png"} for i in range(ITEMS)]
    for i in range(ITEMS):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    config = TaskConfig.model_validate({"name": "forms", "kind": "vision", "type": "exact_match", "path": str(path)})
    for model, of_model in (("adapted", 0), ("distilled", cut_off)):
        run = TaskRun(load_task(config), Stamp("", "", "", {}), model, tmp_path)
        run.keep(Chunk(0, lambda: []), [Answer(f"right {i}", i < of_model) for i in range(ITEMS)])
        with caplog.at_level(logging.WARNING):
            run.finish()
    assert ("distilled: forms: 3 of 40 answers" in caplog.text) == is_told
    assert ("raise tasks.forms.max_new_tokens" in caplog.text) == is_told
    result = summarize(tmp_path, ["adapted", "distilled"], EvaluationConfig(tasks=(config,), bootstrap=50))
    shares = {model: found.cut_off for model, found in result.tasks["forms"].models.items()}
    assert shares == {"adapted": 0, "distilled": cut_off / ITEMS}
    assert figures_of(result, "distilled")["eval/forms/cut_off"] == cut_off / ITEMS  # in MLflow
    assert read_recovery(tmp_path) == result
    page = write_evaluation(result, tmp_path).read_text(encoding="utf-8")
    assert (f"cut off: {cut_off / ITEMS:.1%} of " in page) == bool(cut_off)
    assert ("Cut off: answers" in page) == bool(cut_off)


def test_blind_answers_that_were_cut_off_are_shown(tmp_path: Path) -> None:
    """Beside what images add, which would be less if they had been said to their end."""
    for i in range(ITEMS):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    path = tmp_path / "items.jsonl"
    items = [{"question": f"{i}?", "answer": f"right {i}", "image": f"{i}.png"} for i in range(ITEMS)]
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    task = {"name": "forms", "kind": "vision", "type": "exact_match", "path": str(path)}
    settings = EvaluationConfig.model_validate({"tasks": [task], "bootstrap": 50, "blind": True})
    for seen_or_blind in load_tasks(settings):
        blind = seen_or_blind.config.name != "forms"
        run = TaskRun(seen_or_blind, Stamp("", "", "", {}), "adapted", tmp_path)
        run.keep(Chunk(0, lambda: []), [Answer(f"right {i}", blind and i < 10) for i in range(ITEMS)])
        run.finish()
    result = summarize(tmp_path, ["adapted"], settings)
    assert read_recovery(tmp_path) == result
    page = write_evaluation(result, tmp_path).read_text(encoding="utf-8")
    assert "; cut off: 25.0% of adapted VLM" in page.partition("blind")[2] and "Cut off: answers" in page
