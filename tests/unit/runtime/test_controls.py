"""Controls: what they differ from their run in, which are trained, and the roles that their models have."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lingu_ray.config import CONTROLS, Config, EvaluationConfig
from lingu_ray.config.command_line import load_config, to_yaml
from lingu_ray.config.flat import flat
from lingu_ray.errors import UserError
from lingu_ray.evaluation.roles import compared_models, references_among, trained_role
from lingu_ray.runtime.controls import control_config, control_configs, run_of_control, say_controls
from lingu_ray.runtime.tracking.store_uri import tracking_uri
from tuning.differences import differing_settings

TEXT = {"name": "text", "format": "text", "path": "/x", "language_heavy": True, "ce_weight": 3.0}
SEEN = {"name": "seen", "format": "llava", "path": "/x", "ce_weight": 2.0}
BOTH = list(CONTROLS)


def config(distill: dict[str, Any] | None = None, controls: list[str] = BOTH, **student: Any) -> Config:
    """A run with these settings of the method, on a language-heavy source and another one."""
    return Config.model_validate(
        {
            "name": "mine",
            "output_dir": "/runs",
            "controls": controls,
            "student": {"path": "/vlm", **student} if "from_teacher" not in student else student,
            "teacher": {"path": "/lm"},
            "corpus": {"sources": [TEXT, SEEN]},
            "distill": distill or {},
        }
    )


def ce_weights(run: Config) -> list[float]:
    """The weight of each source's cross-entropy, times that of the whole term at the run's first step."""
    return [run.ce_weight(source) * run.distill.w_ce.at(0) for source in run.training_sources()]


def test_same_ce_differs_from_its_run_in_the_teacher_alone() -> None:
    """Every row's cross-entropy weighs what it does in the run; there is no KD, and no teacher that is loaded."""
    run = config({"ce_on_distilled": 0.2, "w_ce": 0.5, "w_kd": 2, "on_policy": 0.5})
    control = control_configs(run)["same_ce"]
    assert ce_weights(control) == ce_weights(run) == pytest.approx([0.3, 1.0])
    assert run.uses_teacher and not control.uses_teacher and control.distill.w_kd.always_zero
    rows = differing_settings([flat(run), flat(control)])
    assert {key for row in rows for key in row.keys} == {"distill.w_kd", "distill.on_policy"}


def test_plain_ce_weighs_as_the_sources_say() -> None:
    """Neither the factor on distilled rows nor the weight of the term is the run's."""
    run = config({"ce_on_distilled": 0.2, "w_ce": 0.5})
    control = control_configs(run)["plain_ce"]
    assert ce_weights(control) == [3.0, 2.0] and not control.uses_teacher


def test_a_control_is_nested_in_its_run() -> None:
    """Folder, MLflow name and parent; it has the run's data, corpora and store, and no controls itself."""
    run = config({"policy": "language_only", "ce_on_distilled": 0.5})
    for name, control in control_configs(run).items():
        assert control.run_dir == Path("/runs/mine/controls") / name
        assert control.tracking.run_name == f"mine/{name}" and control.tracking.parent == run.run_dir
        assert control.training_sources() == run.training_sources() and control.corpora_dir == run.corpora_dir
        assert control.seed == run.seed and control.train == run.train and not control_configs(control)
        assert run_of_control(control.run_dir) == run.run_dir
    assert run_of_control(run.run_dir) is None


def test_a_control_has_no_password_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings, which are written, leave the store to the environment where the run's do; and name it elsewhere."""
    run = config({"policy": "language_only", "ce_on_distilled": 0.5})
    for control in control_configs(run).values():
        assert tracking_uri(control) == control.tracking.uri == tracking_uri(run)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host")
    for control in control_configs(run).values():
        assert "secret" not in to_yaml(control) and tracking_uri(control) == tracking_uri(run)


@pytest.mark.parametrize(
    ("distill", "controls", "trained", "said"),
    [
        ({"ce_on_distilled": 0.5}, BOTH, ["same_ce", "plain_ce"], ""),
        ({"ce_on_distilled": 0.5}, ["plain_ce"], ["plain_ce"], ""),
        ({"ce_on_distilled": 0.5}, [], [], ""),
        ({}, BOTH, ["plain_ce"], "one and the same here"),
        ({}, ["same_ce"], ["plain_ce"], "one and the same here"),
        ({"w_ce": {"start": 0, "end": 1}}, BOTH, ["same_ce", "plain_ce"], ""),
        ({"policy": "none"}, BOTH, [], "no teacher itself"),
        ({"w_kd": 0}, BOTH, [], "no teacher itself"),
        ({"ce_on_distilled": 0.5, "w_kd": [[0, 0], [0.5, 1], [0.9, 0]]}, BOTH, ["same_ce", "plain_ce"], ""),
    ],
)
def test_controls_that_would_be_trained_twice_are_not(
    distill: dict[str, Any], controls: list[str], trained: list[str], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One where both are the same, none beside a run without a teacher; a log line says so."""
    run = config(distill, controls)
    assert list(control_configs(run)) == trained
    with caplog.at_level(logging.INFO):
        say_controls(run)
    assert said in caplog.text and bool(caplog.text) == bool(said)


def test_a_missing_fine_tuned_model_is_told_before_training(caplog: pytest.LogCaptureFixture) -> None:
    """Where recovery is measured against it and there are tasks to measure; not where the student is the baseline."""
    evaluation = EvaluationConfig.model_validate({"tasks": ["arc_easy"]})
    for student, controls, told in (
        ({"role": "original_vlm"}, [], True),
        ({"from_teacher": {}}, [], True),
        ({"role": "original_vlm"}, ["plain_ce"], False),
        ({}, [], False),
    ):
        caplog.clear()
        say_controls(config(None, controls, **student).model_copy(update={"evaluation": evaluation}))
        assert ("there will be no verdict" in caplog.text) == told


@pytest.mark.parametrize("distill", [{"policy": "all", "ce_on_distilled": 0}, {"w_ce": 0}])
def test_a_control_that_could_learn_nothing_is_refused(distill: dict[str, Any]) -> None:
    """Without the teacher a run without cross-entropy has no loss."""
    with pytest.raises(ValidationError, match=r"this run has no cross-entropy besides: give controls: \[plain_ce\]"):
        config(distill)
    assert list(control_configs(config(distill, ["plain_ce"]))) == ["plain_ce"]


def test_controls_on_the_command_line() -> None:
    """A list, or names with commas between; the setting's old name is refused with the new one."""
    assert load_config(["demo", "controls=plain_ce"]).controls == ("plain_ce",)
    assert load_config(["demo", "controls=same_ce,plain_ce"]).controls == ("same_ce", "plain_ce")
    with pytest.raises(UserError, match="control is called controls now"):
        load_config(["demo", "control=true"])
    with pytest.raises(UserError, match=r"same_ce \| plain_ce"):
        load_config(["demo", "controls=true"])


@pytest.mark.parametrize(
    ("student", "roles", "formula"),
    [
        ({}, ["teacher", "adapted", "distilled", "same_ce", "plain_ce"], "(distilled − adapted) / (teacher − adapted)"),
        (
            {"role": "original_vlm"},
            ["teacher", "original_vlm", "distilled", "same_ce", "fine_tuned"],
            "(distilled − fine_tuned) / (original_vlm − fine_tuned)",
        ),
        (
            {"from_teacher": {}},
            ["teacher", "distilled", "same_ce", "fine_tuned"],
            "(distilled − fine_tuned) / (teacher − fine_tuned)",
        ),
    ],
)
def test_the_models_of_a_run_have_the_roles_of_its_student(
    student: dict[str, Any], roles: list[str], formula: str
) -> None:
    """What the student is decides what recovery is measured against; a control's own settings give the same role."""
    run = config({"ce_on_distilled": 0.5}, **student)
    models = compared_models(run, Path("/out"), {name: Path("/out") for name in CONTROLS})
    assert list(models) == roles and references_among(models).formulas["recovery"] == formula
    assert [trained_role(control_config(run, name)) for name in CONTROLS] == roles[-2:]


def test_a_role_without_a_student_is_refused() -> None:
    """A new VLM is neither adapted nor fine-tuned before."""
    with pytest.raises(ValidationError, match=r"student\.role is of student\.path"):
        config(from_teacher={}, role="original_vlm")
