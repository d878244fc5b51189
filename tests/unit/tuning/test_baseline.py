"""The models that all trials of a sweep are compared with."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
from measured import write_measured
from tiny import picture
from tinyrun import write_pair_and_data
from tinysweep import write_base, write_space

from lingu_ray.config import EvaluationConfig
from lingu_ray.config.command_line import load_config
from lingu_ray.errors import UserError
from lingu_ray.evaluation.roles import references_among
from tuning.baseline import _fine_tuned, check_baseline, reference_roles, warn_of_no_value
from tuning.folder import SweepFolder
from tuning.outcome import Outcome
from tuning.space import Space
from tuning.sweep import load

VLM_OF_NOTHING = "student={from_teacher: {}}"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pair with its data, and an item of each kind of task."""
    folder = tmp_path_factory.mktemp("pair")
    write_pair_and_data(folder)
    shutil.copytree(folder / "student", folder / "adapted")
    (folder / "red.png").write_bytes(picture(1))
    choice = {"query": "The use of", "choices": ["names", "a list"], "gold": 1}
    question = {"question": "Which color?", "answer": "red", "image": "red.png"}
    for name, item in (("choices", choice), ("questions", question)):
        (folder / f"{name}.jsonl").write_text(json.dumps(item) + "\n")
    return folder


@pytest.mark.parametrize(
    ("arguments", "roles"),
    [
        (["demo"], ("teacher", "adapted")),
        (["paper"], ("teacher", "original_vlm", "fine_tuned")),
        (["demo", VLM_OF_NOTHING], ("teacher", "fine_tuned")),
    ],
)
def test_references_are_those_of_the_student(arguments: list[str], roles: tuple[str, ...]) -> None:
    """The student's role decides; beside a distilled model they are a complete pair."""
    found = reference_roles(load_config(arguments))
    assert found == roles and set(references_among(found)) <= set(found)


@pytest.mark.parametrize(
    ("adapted", "told"),
    [
        ((0.5, 0.9), []),
        ((0.8, 0.9), ["recovery, nor will there be a best setting (no loss to recover beyond noise, on one task)"]),
        ((0.5, 0.0), ["retention, nor will there be a best setting (digits: the adapted model has too little to keep"]),
    ],
)
def test_an_objective_without_a_value_is_told_before_the_trials(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, adapted: tuple[float, float], told: list[str]
) -> None:
    """Whether there is a loss to recover, and vision to keep, is known once the reference models are measured."""
    tasks = [
        {"name": "cloze", "kind": "language", "type": "multiple_choice", "path": "-"},
        {"name": "digits", "kind": "vision", "type": "exact_match", "path": "-"},
    ]
    base = load_config(["demo"])
    evaluation = EvaluationConfig.model_validate({"tasks": tasks, "bootstrap": 200})
    config = base.model_copy(update={"evaluation": evaluation})
    cloze, digits = evaluation.tasks
    write_measured(tmp_path, cloze, "teacher", [float(i < 80) for i in range(100)])
    for task, share in zip((cloze, digits), adapted, strict=True):
        write_measured(tmp_path, task, "adapted", [float(i < 100 * share) for i in range(100)])
    keys = {"name": "s", "base": "demo", "search": {"distill.w_kd": {"choice": [1, 2]}}, "algorithm": "optuna"}
    space = Space.model_validate(keys | {"objectives": ["recovery", "retention"]})
    warn_of_no_value(space, config, tmp_path)
    assert [said in message for said, message in zip(told, caplog.messages, strict=True)] == [True] * len(told)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "text", "changed", "said"),
    [
        ("teacher/config.json", "{", "{ ", "model teacher has changed"),
        ("text.jsonl", '"completion": "', '"completion": "More ', "source text has changed"),
        ("choices.jsonl", '"gold": 1', '"gold": 0', "task choices has changed"),
        ("questions.jsonl", '{"question"', '{ "question"', None),
    ],
)
def test_a_sweep_is_resumed_with_the_contents_of_its_trials(
    tmp_path: Path, pair: Path, file: str, text: str, changed: str, said: str | None
) -> None:
    """Models, data and items under the same paths: one trial that has ended binds the others."""
    data = shutil.copytree(pair, tmp_path / "data")
    space, base = load([str(write_space(tmp_path / "space.yaml", write_base(tmp_path / "base.yaml", data, tmp_path)))])
    folder = SweepFolder(tmp_path / "sweep")
    before = (data / file).read_text()
    for content in (before, before.replace(text, changed, 1), before):
        (data / file).write_text(content)
        check_baseline(space, base, folder.root)
    Outcome("trial-1", {}, None, 0, "failed").write(folder.trials / "trial-1")
    for content in (before.replace(text, changed, 1), before):
        (data / file).write_text(content)
        check_baseline(space, base, folder.root)
    Outcome("trial-2", {}, None, 0, "finished").write(folder.trials / "trial-2")
    check_baseline(space, base, folder.root)
    (data / file).write_text(before.replace(text, changed, 1))
    with pytest.raises(UserError, match=f"the content of {said}") if said else nullcontext():
        check_baseline(space, base, folder.root)
    accepted = base.model_copy(update={"corpus": base.corpus.model_copy(update={"if_changed": "warn"})})
    with pytest.raises(UserError, match=said) if said and "source" not in said else nullcontext():
        check_baseline(space, accepted, folder.root)


def test_the_fine_tuned_model_is_plain_cross_entropy_in_the_sweeps_folder(tmp_path: Path) -> None:
    """Trained once for all trials, though the base asks for no control; its MLflow run is the sweep's child."""
    base = load_config(["demo", VLM_OF_NOTHING, f"output_dir={tmp_path}", "controls=[]", "name=baseline"])
    space = Space.model_validate({"name": "mine", "base": "demo", "search": {"distill.w_kd": {"grid": [1, 2]}}})
    run = _fine_tuned(space, base, tmp_path)
    assert (
        not run.uses_teacher and run.distill.w_ce.at(0) == 1 and run.run_dir == tmp_path / "baseline/controls/plain_ce"
    )
    assert run.tracking.run_name == "mine/fine_tuned" and run.tracking.parent == tmp_path
