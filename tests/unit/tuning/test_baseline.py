"""The models that all trials of a sweep are compared with."""

from pathlib import Path

import pytest

from lingu_ray.config.command_line import load_config
from lingu_ray.evaluation.roles import references_among
from tuning.baseline import _fine_tuned, reference_roles
from tuning.space import Space

VLM_OF_NOTHING = "student={from_teacher: {}}"


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


def test_the_fine_tuned_model_is_plain_cross_entropy_in_the_sweeps_folder(tmp_path: Path) -> None:
    """Trained once for all trials, though the base asks for no control; its MLflow run is the sweep's child."""
    base = load_config(["demo", VLM_OF_NOTHING, f"output_dir={tmp_path}", "controls=[]", "name=baseline"])
    space = Space.model_validate({"name": "mine", "base": "demo", "search": {"distill.w_kd": {"grid": [1, 2]}}})
    run = _fine_tuned(space, base, tmp_path)
    assert (
        not run.uses_teacher and run.distill.w_ce.at(0) == 1 and run.run_dir == tmp_path / "baseline/controls/plain_ce"
    )
    assert run.tracking.run_name == "mine/fine_tuned" and run.tracking.parent == tmp_path
