"""Text that YAML could take for something else, on its way through a run: settings, report, comparison, sweep, card."""

import re
from pathlib import Path

import pytest
from huggingface_hub.repocard import metadata_load

from lingu_ray.config import strict_yaml
from lingu_ray.config.command_line import load_config, load_yaml, to_yaml
from lingu_ray.report.origin import card_metadata
from lingu_ray.report.run_page import write_report
from tuning.compared import read_folder
from tuning.outcome import Outcome
from tuning.results import Setting, best_recipe
from tuning.space import Space

TRICKY = {"subset": "no", "split": "12:30", "prompt": "1e-5", "answer": "null", "image": "2024-01-01"}
FILE = """\
name: mine
student: {path: vlm}
teacher: {path: lm}
corpus:
  sources: [{name: "on", format: template, path: my/data, language_heavy: true}]
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run's folder in which only `config.yaml` is."""
    file = tmp_path / "mine.yaml"
    file.write_text(FILE)
    config = load_config([str(file), *(f"corpus.sources.on.{key}='{value}'" for key, value in TRICKY.items())])
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder


def test_a_run_reads_its_own_settings(run_dir: Path):
    """Each is the text that was given."""
    (source,) = load_yaml(run_dir / "config.yaml").corpus.sources
    assert {key: getattr(source, key) for key in TRICKY} == TRICKY
    assert source.name == "on"


def test_the_report_shows_them(run_dir: Path):
    """In the table of settings `no` is no, not False, and 12:30 is not 750."""
    page = re.sub(r"<[^>]+>", " ", write_report(run_dir).read_text("utf-8"))
    words = " ".join(page.split())
    for key, value in TRICKY.items():
        assert f"corpus.sources.on.{key} {value} " in words


def test_a_comparison_shows_them(run_dir: Path):
    """A run that is read from its folder has them as text."""
    settings = read_folder(run_dir).settings
    assert {key: settings[f"corpus.sources.on.{key}"] for key in TRICKY} == TRICKY


def test_a_sweep_writes_and_reads_them(run_dir: Path):
    """The recipe of the best setting has the values that its trials had."""
    base = load_yaml(run_dir / "config.yaml")
    values = {"corpus.sources.on.subset": "off", "corpus.sources.on.split": "1_000"}
    best = Setting(None, values, (Outcome("t", values, None, 0),))
    recipe = run_dir / "best.yaml"
    space = Space(name="sweep", base="demo", cases={"one": values})
    recipe.write_text(best_recipe(best, base, space))
    (source,) = load_yaml(recipe).corpus.sources
    assert (source.subset, source.split) == ("off", "1_000")


def test_a_model_card_has_them(tmp_path: Path):
    """Norwegian is `no`, for the hub's reader too, which takes a bare `no` for false; a malformed card is not known."""
    (tmp_path / "README.md").write_text("---\nlanguage: no\ntags: [12:30]\n---\n# A model\n")
    metadata = card_metadata(str(tmp_path))
    assert metadata == {"language": "no", "tags": ["12:30"]}
    (tmp_path / "README.md").write_text(f"---\n{strict_yaml.dump(metadata)}---\n")
    assert metadata_load(tmp_path / "README.md") == metadata
    (tmp_path / "README.md").write_text("---\nlanguage: [\n---\n")
    assert card_metadata(str(tmp_path)) is None
