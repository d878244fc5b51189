"""Every recipe of the package is complete, valid and explains itself."""

import re
from importlib.resources import files

import pytest

from lingu_ray.commands import recipes
from lingu_ray.config.command_line import load_config
from lingu_ray.estimate import read_arguments


@pytest.mark.parametrize("name", recipes())
def test_recipe_is_valid_and_named_after_its_file(name: str):
    """A recipe validates as it is, and its run's folder bears its name."""
    assert load_config([name]).name == name


@pytest.mark.parametrize("name", recipes())
def test_recipe_says_what_it_is_for(name: str):
    """Its first line, which `--help` shows, is a sentence that fits there."""
    line = recipes()[name]
    assert line.endswith(".")
    assert 20 < len(line) < 120


@pytest.mark.parametrize("name", recipes())
def test_mixture_adds_up(name: str):
    """Weights of a recipe are shares: their sum is 1."""
    weights = [s.weight for s in load_config([name]).corpus.sources if s.weight is not None]
    assert not weights or sum(weights) == pytest.approx(1)


def test_selective_recipes_have_both_kinds_of_source():
    """A recipe that distills selectively has sources to distill and sources to leave alone."""
    for name in recipes():
        config = load_config([name])
        if config.distill.policy == "selective" and config.demo is None:
            assert {s.language_heavy for s in config.corpus.sources} == {True, False}


def test_smollm2_recipes_fit_each_other():
    """The student that `smollm2-135m` starts from is what `smollm2-135m-adapt` exports, on the same teacher."""
    adapt, distill = load_config(["smollm2-135m-adapt"]), load_config(["smollm2-135m"])
    assert distill.student.path == str(adapt.run_dir / "export")
    assert distill.teacher.path == adapt.teacher.path


def test_paper_recipe_starts_from_what_its_command_writes():
    """The conversion that recipe `paper` names in its comment writes the folder that its student is read from."""
    text = (files("lingu_ray") / "recipes" / "paper.yaml").read_text("utf-8")
    command = next(line for line in text.splitlines() if "convert_nanovlm" in line)
    assert command.split()[-1] == load_config(["paper"]).student.path


@pytest.mark.parametrize("name", ["smolvlm-256m", "paper", "qwen2-vl-2b"])
def test_recipes_for_gpus_say_what_they_need(name: str):
    """The command whose figures a recipe's comment has is one of `lingu-ray estimate`, for this recipe and a GPU."""
    text = (files("lingu_ray") / "recipes" / f"{name}.yaml").read_text("utf-8")
    (command,) = re.findall(r"`lingu-ray estimate ([^`]+)`", text.replace("\n# ", " "))
    config, settings = read_arguments(command.split())
    assert (config.name, settings.device) == (name, "h100") and "It has not been run yet." in text
