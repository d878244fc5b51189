"""`--help`: a page of sections first, then every setting of what is asked about."""

from typing import Any

import pytest

from lingu_ray.commands import recipes
from lingu_ray.config import Config
from lingu_ray.config.command_line import load_config
from lingu_ray.config.help import sections, summary, wants
from lingu_ray.config.tree import section_in
from lingu_ray.errors import UserError


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a command line prints before it exits in peace."""
    with pytest.raises(SystemExit) as caught:
        load_config(list(argv))
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_help_is_a_page_of_sections(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """`--help` names recipes and sections, a line each, and not yet the settings inside the sections."""
    monkeypatch.setenv("COLUMNS", "120")
    text = shown(capsys, "train.steps=oops", "--help")
    words = " ".join(text.split())
    assert len(text.splitlines()) < 64
    assert "output_dir = runs" in text
    assert "train.steps = " not in text
    for key, place in sections(Config).items():
        assert f"  {key} " in text
        assert summary(place.section) in words
    for name, line in recipes().items():
        assert f"{name} {line}" in words


def test_any_value_is_no_section():
    """A list of values of any kind, such as those that a sweep draws from."""
    assert wants(tuple[Any, ...] | None) == "a list, each a value or null"


def test_help_all_teaches_every_setting(capsys: pytest.CaptureFixture[str]):
    """`--help all` has every key with its default and description."""
    text = shown(capsys, "--help", "all")
    for line in (
        "train.steps = 1000",
        "train.learning_rates.vision = 0.0",
        "corpus.sources.NAME.format (required)",
        "student.from_teacher.pixel_shuffle = null",
        "distill.temperature = 1.0",
        "SETTING.until = 1.0",
    ):
        assert line in text
    words = " ".join(text.split())
    for section in (Config, *(place.section for place in sections(Config).values())):
        for setting in section.model_fields.values():
            if section_in(setting.annotation) is None:
                assert (setting.description or "no description") in words


@pytest.mark.parametrize(
    ("argv", "there", "not_there"),
    [
        (["--help", "distill"], "distill.beta = 0.5", "train.steps"),
        (["my.yaml", "-h", "distill", "ray"], "ray.num_workers = 1", "train.steps"),
        (["--help=train.lora"], "train.lora.rank = 16", "train.steps"),
        (["--help", "train"], "train.lora.rank = 16", "distill"),
        (["--help", "corpus.sources"], "corpus.sources.NAME.weight = null", "corpus.seed"),
        (["--help", "corpus.sources.NAME.weight"], "corpus.sources.NAME.weight = null", "ce_weight"),
        (["--help", "train.steps"], "optimizer steps", "train.betas"),
        (["--help", "schedules"], "SETTING.shape = linear", "distill"),
    ],
)
def test_help_explains_what_is_asked(capsys: pytest.CaptureFixture[str], argv: list[str], there: str, not_there: str):
    """`--help SECTION`, or a setting, shows that section with what is inside it, and nothing else."""
    text = shown(capsys, *argv)
    assert there in text
    assert not_there not in text


@pytest.mark.parametrize(
    ("topic", "meant"),
    [
        ("distil", "did you mean distill?"),
        ("temprature", "did you mean distill.temperature?"),
        ("xyzzy", "there are demo"),
    ],
)
def test_help_on_what_does_not_exist(topic: str, meant: str):
    """A section that is not there is refused with the nearest section or setting."""
    with pytest.raises(UserError) as caught:
        load_config(["--help", topic])
    assert meant in str(caught.value)
