"""Settings that a run has recorded are read as it was trained, whatever is refused of them today."""

from pathlib import Path

import pytest
from config_files import FILE, refusal

import lingu_ray.config
from lingu_ray.config import Config
from lingu_ray.config.command_line import load_config, load_yaml, to_yaml
from lingu_ray.errors import UserError
from lingu_ray.report.run_page import write_report
from tuning.compared import read_folder

CHANGES = {  # what another version wrote: what it is refused for, and what is read
    "controls: []": ("control: true", "control is called controls now"),
    "    rank: 16": ("    rank: 16\n    wobble: 3", "no such setting"),
    "  rows_per_step: 32": ("  rows_per_step: 1", "every worker needs a row"),
    "    decoder: 0.5": ("    decoder: 0.0", "nothing would be trained"),
}

LORA = "train.lora.rank=16"


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """The `config.yaml` of a run, complete."""
    given = tmp_path / "mine.yaml"
    given.write_text(FILE, "utf-8")
    config = load_config([str(given), "train.learning_rates={projector: 0, decoder: 0.5}", "ray.num_workers=2", LORA])
    path = tmp_path / "runs" / "mine" / "config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(to_yaml(config), "utf-8")
    return path


@pytest.mark.parametrize("before", CHANGES)
def test_a_run_is_read_as_it_was_recorded(recorded: Path, before: str, caplog: pytest.LogCaptureFixture):
    """A comparison and a report have it, a warning says why it would be refused; a new run is refused."""
    written, refused = CHANGES[before]
    text = recorded.read_text("utf-8")
    assert before in text
    recorded.write_text(text.replace(before, written, 1), "utf-8")
    assert refused in refusal(str(recorded))
    config = load_yaml(recorded)
    assert config.model_dump().keys() == Config.model_fields.keys()
    assert f"{recorded}: read as it was recorded; today it would be refused" in caplog.text and refused in caplog.text
    shown = read_folder(recorded.parent).settings
    assert shown["train.rows_per_step"] == str(config.train.rows_per_step)
    assert write_report(recorded.parent).exists()
    caplog.clear()
    recorded.write_text(text, "utf-8")
    load_yaml(recorded)
    assert not caplog.text


def test_values_that_no_setting_has_are_refused(recorded: Path):
    """Nobody knows what they meant, beside settings that were left out."""
    recorded.write_text(
        recorded.read_text("utf-8").replace("rows_per_step: 32", "rows_per_step: many\n  wobble: 1"), "utf-8"
    )
    with pytest.raises(UserError, match=r"train\.rows_per_step: many does not fit"):
        load_yaml(recorded)


def test_every_rule_lets_recorded_settings_be():
    """No section has a check of another kind, which would refuse a run that was trained."""
    folder = Path(lingu_ray.config.__file__).parent
    assert [path.name for path in folder.glob("*.py") if 'mode="after"' in path.read_text("utf-8")] == ["base.py"]
