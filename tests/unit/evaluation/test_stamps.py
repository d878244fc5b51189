"""Answers that were kept are taken again for the same questions, model and engine alone."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import picture

from lingu_ray.config import EvaluationConfig, TaskConfig
from lingu_ray.config.evaluation import CLUSTER
from lingu_ray.errors import UserError
from lingu_ray.evaluate import main
from lingu_ray.evaluation.engines.engine import Answer
from lingu_ray.evaluation.item_files import (
    Parts,
    Stamp,
    asked_by,
    check_settings,
    items_path,
    read_items,
    stamp_of,
    write_items,
)
from lingu_ray.evaluation.measure import TaskRun
from lingu_ray.evaluation.recovery import summarize
from lingu_ray.evaluation.run import engines_for
from lingu_ray.evaluation.tasks.blind import blinded
from lingu_ray.evaluation.tasks.harness import Continued
from lingu_ray.evaluation.tasks.load import load_task
from lingu_ray.evaluation.tasks.task import Task

ANSWERS = {"item": ["1", "2"], "prediction": ["red", "blue"], "answers": [["red"], ["red"]]}


def task(folder: Path, **changed: Any) -> TaskConfig:
    """Two questions about pictures, in a file of their own."""
    for i in (1, 2):
        (folder / f"{i}.png").write_bytes(picture(i))
    path = folder / "items.jsonl"
    rows = [{"question": f"Which, {i}?", "answer": "red", "image": f"{i}.png"} for i in (1, 2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"name": "colors", "kind": "vision", "type": "exact_match", "path": str(path)}
    return TaskConfig.model_validate(settings | changed)


def stamp(config: TaskConfig, **changed: str) -> Stamp:
    """What a model was asked, and by what."""
    return replace(Stamp("of the items", "vllm, fp32", "of the model", asked_by(config)), **changed)


def test_what_answers_depend_on_is_described(tmp_path: Path) -> None:
    """Pictures by their content, questions, answers and lengths; not where they lie, nor how they are judged."""
    (tmp_path / "moved").mkdir()
    config = task(tmp_path)
    before = load_task(config).asked
    assert load_task(task(tmp_path / "moved")).asked == before
    assert load_task(config.model_copy(update={"type": "anls", "in_mean": False})).asked == before
    others = [config.model_copy(update=update) for update in ({"limit": 1}, {"max_new_tokens": 5}, {"stop": ("x",)})]
    (tmp_path / "2.png").write_bytes(picture(3))  # in place, under its name
    assert len({before, load_task(config).asked, *(load_task(other).asked for other in others)}) == 5


@pytest.mark.parametrize("pictures", [(1, 2), (1, 1)])
def test_answers_are_kept_with_what_tells_their_images_apart(tmp_path: Path, pictures: tuple[int, int]) -> None:
    """Questions about one image are known to be, whatever its file is called; without images each is one of its own."""
    config = task(tmp_path)
    for i, content in enumerate(pictures, 1):
        (tmp_path / f"{i}.png").write_bytes(picture(content))
    seeing = load_task(config)
    kept = []
    for asked in (seeing, blinded(seeing)):
        run = TaskRun(asked, stamp(config), "adapted", tmp_path)
        (chunk,) = run.chunks()
        run.keep(chunk, [Answer("red", False), Answer("blue", False)])
        run.parts.join(len(run.task.items))
        kept.append(read_items(tmp_path, asked.config.name, "adapted") or {})
    assert len(set(kept[0][CLUSTER])) == len(set(pictures)) and len(set(kept[1][CLUSTER])) == 2


@pytest.mark.parametrize("changed", [{"stop": ("\n", ".")}, {"max_new_tokens": 5}, {"prompt": "So?"}])
def test_what_a_task_of_the_harness_brings_is_described(tmp_path: Path, changed: dict[str, Any]) -> None:
    """Its file has the stop texts and the length of answers: they are in no setting."""
    config = TaskConfig.model_validate({"name": "t", "kind": "language", "type": "lm_eval", "path": "babi"})
    item = Continued("1", "Where?", (), {"task": "babi", "metric": "exact_match"}, (), 256, ("\n",))
    assert Task(config, (item,)).asked != Task(config, (replace(item, **changed),)).asked


def test_a_stamp_is_read_as_it_was_written(tmp_path: Path) -> None:
    """In a file of items; none in a file that has none, is another, or is not there."""
    config = task(tmp_path)
    path = tmp_path / "items" / "colors.adapted.parquet"
    assert stamp_of(path) is None
    write_items(path, ANSWERS, stamp(config))
    assert stamp_of(path) == stamp(config) and stamp_of(path) != stamp(config, engine="transformers, fp32")
    write_items(path, ANSWERS, None)
    assert stamp_of(path) is None
    path.write_bytes(b"no parquet")
    assert stamp_of(path) is None


def test_chunks_of_another_engine_are_not_taken(tmp_path: Path) -> None:
    """To look for them deletes none: they are deleted when a chunk is to be written beside them."""
    path, config = tmp_path / "colors.adapted.parquet", task(tmp_path)
    first, second = (Parts(path, stamp(config, engine=engine)) for engine in ("vllm, fp32", "transformers, fp32"))
    first.write(0, ANSWERS)
    assert (first.answered(), second.answered()) == ({0}, set())
    second.drop_others()
    assert (first.answered(), second.answered()) == (set(), set())


def test_a_command_that_was_taken_for_dead_joins_no_part(tmp_path: Path) -> None:
    """It was suspended; another one has measured all, and joined what both have written."""
    config = task(tmp_path)
    path = items_path(tmp_path, "colors", "adapted")
    suspended, other = Parts(path, stamp(config)), Parts(path, stamp(config))
    suspended.write(0, ANSWERS)
    other.write(2, ANSWERS)
    other.join(4)
    suspended.write(2, ANSWERS)
    with pytest.raises(UserError, match="answers to 2 of 4 items"):
        suspended.join(4)
    assert (read_items(tmp_path, "colors", "adapted") or {})["item"] == ["1", "2"] * 2


@pytest.mark.parametrize("changed", ["engine", "asked"])
def test_models_that_were_asked_differently_are_not_compared(tmp_path: Path, changed: str) -> None:
    """However their items came to lie beside one another."""
    config = task(tmp_path)
    for model, of_model in (("adapted", stamp(config)), ("distilled", stamp(config, **{changed: "another"}))):
        write_items(items_path(tmp_path, "colors", model), ANSWERS, of_model)
    with pytest.raises(UserError, match=r"were measured (differently \(adapted by vllm|on different items)"):
        summarize(tmp_path, ["adapted", "distilled"], EvaluationConfig(tasks=(config,)))


@pytest.mark.parametrize("other", ["shapes", "colors@blind"])
def test_a_name_is_of_one_model(tmp_path: Path, other: str) -> None:
    """Answers that an earlier training left to a task, or without images, are not joined with those of a later one."""
    config = task(tmp_path)
    tasks = (config, config.model_copy(update={"name": "shapes"})) if other == "shapes" else (config,)
    settings = EvaluationConfig(tasks=tasks, blind=other == "colors@blind")
    for trained, refused in (
        ("later", pytest.raises(UserError, match=f"colors and {other} were answered by different models of the name")),
        ("of the model", nullcontext()),
    ):
        write_items(items_path(tmp_path, "colors", "adapted"), ANSWERS, stamp(config))
        write_items(items_path(tmp_path, other, "adapted"), ANSWERS, stamp(config, model=trained))
        with refused:
            summarize(tmp_path, ["adapted"], settings)


def test_models_are_measured_as_those_beside_them(tmp_path: Path) -> None:
    """`auto` is the engine of what was measured before; another engine or precision is refused."""
    config = task(tmp_path)
    settings = lambda **more: EvaluationConfig(tasks=(config,), **more)  # noqa: E731
    assert list(engines_for(settings(), ["adapted"], tmp_path)) == ["vllm", "transformers"]
    write_items(items_path(tmp_path, "colors", "adapted"), ANSWERS, stamp(config, engine="transformers, fp32"))
    assert list(engines_for(settings(), ["adapted"], tmp_path)) == ["transformers"]
    write_items(items_path(tmp_path, "colors@blind", "adapted"), ANSWERS, stamp(config))
    with pytest.raises(UserError, match="adapted were measured by transformers, fp32 and vllm, fp32"):
        engines_for(settings(blind=True), ["adapted"], tmp_path)
    for more in ({"engine": "vllm"}, {"precision": "bf16"}):
        with pytest.raises(UserError, match="adapted were measured by transformers, fp32, not with evaluation"):
            engines_for(settings(**more), ["adapted"], tmp_path)


@pytest.mark.slow
def test_metrics_are_found_again_for_the_same_settings_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a model: how answers are judged may change, and what was asked may not."""
    config = task(tmp_path)
    out = tmp_path / "out"
    for model in ("adapted", "distilled"):
        write_items(items_path(out, "colors", model), ANSWERS, stamp(config))
    said = write_tasks(tmp_path, {"type": "anls"}, config), write_tasks(tmp_path, {"limit": 1}, config)
    main([f"tasks={said[0]}", f"out={out}"])
    assert "Scores of adapted, distilled on 1 task" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"colors: adapted was measured with another limit \(limit: None\): set it"):
        main([f"tasks={said[1]}", f"out={out}"])


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({}, {"type": "vqa_accuracy"}, None),
        ({}, {"type": "multiple_choice"}, r"another kind of items \(kind of items: 'question, answer, image'\)"),
        ({}, {"type": "mme"}, "another kind of items"),
        ({"kind": "language"}, {"kind": "language", "type": "perplexity"}, "another kind of items"),
        ({"type": "multiple_choice"}, {}, r"another kind of items \(kind of items: 'question, choices, gold, image'\)"),
        ({}, {"path": "elsewhere.jsonl"}, None),
        (
            {"kind": "language", "type": "lm_eval", "path": "piqa"},
            {"kind": "language", "type": "lm_eval", "path": "arc_easy"},
            r"another path \(path: 'piqa'\)",
        ),
    ],
)
def test_answers_of_another_kind_are_not_judged(
    tmp_path: Path, before: dict[str, Any], now: dict[str, Any], said: str | None
) -> None:
    """Types that ask for the same are judged from the same answers; a path of the harness is a task of its own."""
    write_items(items_path(tmp_path, "colors", "adapted"), ANSWERS, stamp(task(tmp_path, **before)))
    with pytest.raises(UserError, match=said) if said else nullcontext():
        check_settings(tmp_path, EvaluationConfig(tasks=(task(tmp_path, **now),)), ["adapted"])


def test_metrics_are_of_the_engine_and_the_questions_that_the_settings_name(tmp_path: Path) -> None:
    """Without a model: another precision is not taken for the one that is asked for, nor blind answers to others."""
    config, out = task(tmp_path), tmp_path / "out"
    for name, settings in (("colors", config), ("colors@blind", task(tmp_path, max_new_tokens=3))):
        write_items(items_path(out, name, "adapted"), ANSWERS, stamp(settings))
    file = write_tasks(tmp_path, {}, config)
    with pytest.raises(UserError, match=r"adapted were measured by vllm, fp32, not with .*precision=bf16: set those"):
        main([f"tasks={file}", f"out={out}", "precision=bf16"])
    with pytest.raises(UserError, match=r"colors: adapted was measured with another max_new_tokens"):
        main([f"tasks={file}", f"out={out}", "blind=true"])


def write_tasks(folder: Path, changed: dict[str, Any], config: TaskConfig) -> Path:
    """A file of tasks."""
    path = folder / f"{'-'.join(changed)}.yaml"
    path.write_text(json.dumps({"tasks": [config.model_dump(mode="json", exclude_defaults=True) | changed]}))
    return path
