"""From models and items to recovery.json, and again without the models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from tiny import picture, tiny_student, tiny_teacher

from lingu_ray.config import EvaluationConfig
from lingu_ray.errors import UserError
from lingu_ray.evaluate import main
from lingu_ray.evaluation.recovery import summarise
from lingu_ray.evaluation.run import evaluate


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A teacher, a student with the teacher's decoder, and one with another decoder."""
    folder = tmp_path_factory.mktemp("models")
    teacher = tiny_teacher(folder=folder / "teacher")
    tiny_student(teacher, folder=folder / "distilled")
    tiny_student(tiny_teacher(seed=5), folder=folder / "adapted")
    return {name: folder / name for name in ("teacher", "adapted", "distilled")}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> EvaluationConfig:
    """Three tasks of a few items, one of each type."""
    folder = tmp_path_factory.mktemp("items")
    (folder / "0.png").write_bytes(picture(0))
    items = {
        "choice": [
            {"query": f"The {w} of", "choices": ["a list", "names", "x"], "gold": 1} for w in ("use", "end", "b")
        ],
        "text": [{"text": "Names refer to objects."}, {"text": "A class body."}],
        "image": [{"question": "Which?", "answer": "seven", "image": "0.png"}],
    }
    for name, records in items.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    kinds = {
        "choice": ("language", "multiple_choice"),
        "text": ("language", "perplexity"),
        "image": ("vision", "exact_match"),
    }
    tasks = [
        {"name": name, "kind": kind, "type": type, "path": str(folder / f"{name}.jsonl"), "max_new_tokens": 4}
        for name, (kind, type) in kinds.items()
    ]
    return EvaluationConfig.model_validate({"tasks": tasks, "bootstrap": 100})


def test_the_copy_of_the_teacher_scores_as_the_teacher(
    models: dict[str, Path], settings: EvaluationConfig, tmp_path: Path
) -> None:
    """A student with the teacher's decoder differs by the few tokens it has more; vision leaves the teacher out."""
    tasks = evaluate(models, settings, tmp_path)["tasks"]
    assert list(tasks["choice"]["models"]) == list(tasks["text"]["models"]) == ["teacher", "adapted", "distilled"]
    assert list(tasks["image"]["models"]) == ["adapted", "distilled"]
    assert {name: task["n"] for name, task in tasks.items()} == {"choice": 3, "text": 2, "image": 1}
    table = {model: pq.read_table(tmp_path / "items" / f"choice.{model}.parquet").to_pydict() for model in models}
    assert {"item", "score", "prediction", "logliks"} <= set(table["teacher"])
    logliks = {model: np.array(columns["logliks"]) for model, columns in table.items()}
    assert np.allclose(logliks["distilled"], logliks["teacher"], rtol=0, atol=0.5)
    assert not np.allclose(logliks["adapted"], logliks["teacher"], rtol=0, atol=2)


def test_the_same_json_without_a_model(models: dict[str, Path], settings: EvaluationConfig, tmp_path: Path) -> None:
    """recovery.json is made again from the parquet files alone, byte for byte."""
    evaluate(models, settings, tmp_path)
    written = (tmp_path / "recovery.json").read_bytes()
    shutil.copytree(tmp_path / "items", tmp_path / "elsewhere" / "items")
    summarise(tmp_path / "elsewhere", list(models), settings)
    assert (tmp_path / "elsewhere" / "recovery.json").read_bytes() == written


def test_items_of_an_earlier_evaluation_are_not_taken(
    models: dict[str, Path], settings: EvaluationConfig, tmp_path: Path
) -> None:
    """A model that is not measured on a task any more leaves nothing of its name behind."""
    items = tmp_path / "items"
    items.mkdir()
    (items / "image.teacher.parquet").write_bytes(b"of another model")
    evaluate(models, settings, tmp_path)
    assert not (items / "image.teacher.parquet").exists()


def test_bad_items_stop_before_a_model_is_loaded(settings: EvaluationConfig, tmp_path: Path) -> None:
    """The error is about the items although the model is missing too."""
    broken = settings.tasks[0].model_copy(update={"path": str(tmp_path / "none.jsonl")})
    with pytest.raises(UserError, match="no file"):
        evaluate({"teacher": tmp_path / "missing"}, EvaluationConfig(tasks=(broken,)), tmp_path)


def test_nothing_to_evaluate_and_bad_names(settings: EvaluationConfig, tmp_path: Path) -> None:
    """No task, no model, or a name that is no file name."""
    with pytest.raises(UserError, match="nothing to evaluate"):
        evaluate({"teacher": tmp_path}, EvaluationConfig(), tmp_path)
    with pytest.raises(UserError, match="model's name"):
        evaluate({"../teacher": tmp_path}, settings, tmp_path)


def test_the_command(
    models: dict[str, Path], settings: EvaluationConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Writes json, items and figure, and prints the verdict; without models it does so from the items."""
    tasks = tmp_path / "tasks.yaml"
    tasks.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    out = tmp_path / "out"
    main([*(f"{name}={path}" for name, path in models.items()), f"tasks={tasks}", f"out={out}"])
    written = (out / "recovery.json").read_bytes()
    main([f"tasks={tasks}", f"out={out}"])
    first, second = capsys.readouterr().out.splitlines()
    assert first == second and first.startswith("The claim")
    assert (out / "recovery.json").read_bytes() == written and (out / "recovery.png").exists()


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    """Missing arguments, and settings that are none, are the user's errors."""
    tasks = tmp_path / "tasks.yaml"
    tasks.write_text("task: []")
    with pytest.raises(UserError, match="give NAME=MODEL"):
        main(["teacher=x"])
    with pytest.raises(UserError, match=r"tasks=.*tasks\.yaml"):
        main([f"tasks={tasks}", "out=x"])
