"""What a run's end needs of its report is tried at its start: drawn, told with its cure where it fails, and removed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest
from limits import full_disk

from lingu_ray import evaluate, train
from lingu_ray.config import Config
from lingu_ray.errors import UserError
from lingu_ray.report import evaluation_page, model_card, run_report
from lingu_ray.report.made_up import write_run
from lingu_ray.report.rehearsal import rehearse_evaluation, rehearse_report
from lingu_ray.report.run_report import write_run_report
from lingu_ray.runtime.run_folder.folder import RunFolder
from tuning import page, sweep

pytestmark = pytest.mark.slow  # draws pages of plots

ODD = "-._A.very-long_name"
TASK = {"name": ODD, "kind": "language", "type": "multiple_choice", "path": "items.jsonl"}


def config(output_dir: Path, **evaluation: Any) -> Config:
    """A run with a control, names of all characters that names may have, and paths that Markdown and TeX would read."""
    return Config.model_validate(
        {
            "name": "run",
            "output_dir": str(output_dir),
            "controls": ["plain_ce"],
            "align": {},
            "student": {"path": str(output_dir / "a|student *of* $1$")},
            "teacher": {"path": str(output_dir / "<b>teacher")},
            "corpus": {"sources": [{"name": ODD, "format": "text", "path": "x.txt", "language_heavy": True}]},
            "evaluation": {"tasks": [TASK, TASK | {"name": "short", "kind": "vision"}]} | evaluation,
        }
    )


def breaking(monkeypatch: pytest.MonkeyPatch, module: Any, template: str, text: str) -> None:
    """Give a module templates of which one has this text."""
    templates = jinja2.Environment(loader=jinja2.DictLoader({template: text}), undefined=jinja2.StrictUndefined)
    monkeypatch.setattr(module, "environment", lambda *_: templates)


def test_the_report_is_drawn_of_the_runs_own_names(tmp_path: Path) -> None:
    """Page, figures and both cards, of sources, tasks and models of this run; a row of a table stays a row."""
    made_up = config(tmp_path)
    drawn = write_run_report(made_up, write_run(made_up)).read_text()
    folder = RunFolder(made_up.run_dir)
    assert ODD in drawn and "distilled" in drawn and "made up" in drawn and "chosen right before" in drawn
    assert {path.name for path in folder.report.iterdir()} == {
        "report.html",
        "loss.png",
        "recovery.png",
        "recovery.json",
        "items",
    }
    cards = [RunFolder(root).export / "README.md" for root in (folder.root, folder.root / "controls" / "plain_ce")]
    assert [ODD in card.read_text() for card in cards] == [True, True]
    assert r"| student | a\|student *of* $1$ |" in cards[0].read_text()


def test_nothing_is_left_of_it(tmp_path: Path) -> None:
    """Also without tasks, and where the run is a control itself."""
    rehearse_report(config(tmp_path, tasks=[]).model_copy(update={"controls": ()}))
    assert not list(tmp_path.iterdir())


def test_a_full_disk(tmp_path: Path) -> None:
    """It is told by the setting, with its cure."""
    with full_disk(), pytest.raises(UserError, match=rf"output_dir={tmp_path}: the report.* cannot be written .*room"):
        rehearse_report(config(tmp_path))


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    """Items of a task are in files of its name and the model's; of a run the longest name that a task may have fits."""
    long = config(tmp_path / "runs", tasks=[TASK | {"name": 150 * "x"}])
    rehearse_report(long)
    with pytest.raises(UserError, match=r"File name too long.* shorten the names"):
        rehearse_evaluation(long.evaluation, ["teacher", 150 * "m"], tmp_path / "out")
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{{ nothing_of_that_name }}",
            "UndefinedError: .*nothing_of_that_name.* install lingu_ray",
        ),
        ("{{ front_matter }}", "front matter differs when it is read back"),
        (
            "{% import 'missing.md' as missing %}",
            r"TemplateNotFound: missing\.md\. A part is missing: install",
        ),
    ],
)
def test_a_broken_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    """What it raises is told before training, and a front matter that nobody could read."""
    breaking(monkeypatch, model_card, "model_card.md", text)
    monkeypatch.setattr(run_report, "write_report", lambda folder: folder)
    with pytest.raises(UserError, match=message):
        rehearse_report(config(tmp_path))


DRAW = """
from pathlib import Path
from lingu_ray.report.plots import Panel, save_panels
panel = Panel(r"$\\nonsense{", (3, 2), lambda axis: axis.set_title(r"$\\nonsense{ $"))
save_panels([panel], Path("panel.png"))
assert "nonsense" in panel.svg()
"""
TRY = """
from pathlib import Path
from lingu_ray.errors import UserError
from lingu_ray.report.rehearsal import rehearsed
try:
    with rehearsed("output_dir=x", Path("x")):
        print("drawn")
except UserError as error:
    print(error)
"""


def in_process(code: str, folder: Path, **environment: str) -> str:
    """What a new Python prints that runs this code in a folder."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_figures_need_no_backend_and_no_tex(tmp_path: Path) -> None:
    """Drawn where a notebook's environment names its backend, matplotlibrc wants TeX, and names have dollars."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    in_process(DRAW, tmp_path, MPLBACKEND="module://not_installed")
    assert (tmp_path / "panel.png").stat().st_size > 1000


def test_a_backend_that_matplotlib_does_not_know(tmp_path: Path) -> None:
    """It keeps matplotlib from being imported at all; the variable is named."""
    assert "'nonsense' is not a valid value" in (said := in_process(TRY, tmp_path, MPLBACKEND="nonsense"))
    assert "Correct MPLBACKEND" in said


@pytest.mark.parametrize("command", ["train", "evaluate", "sweep"])
def test_commands_try_it_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """A run, an evaluation and a sweep end before Ray starts, without an MLflow run, where a page is broken."""
    import ray

    broken = "{{ nothing_of_that_name }}"
    breaking(monkeypatch, model_card, "model_card.md", broken)
    breaking(monkeypatch, evaluation_page, "evaluation.html", broken)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))
    with pytest.raises(UserError, match=r"the report, tried before the work .*nothing_of_that_name"):
        if command == "train":
            train.main(["demo", f"output_dir={tmp_path}"])
        elif command == "evaluate":
            evaluate.main([f"model={tmp_path}", "tasks=arc_easy", f"out={tmp_path / 'out'}"])
        else:
            sweep.main(["demo", f"output_dir={tmp_path}"])
    assert not list(tmp_path.rglob("mlflow.*"))


def test_a_sweep_tries_its_own_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the sweep's page is broken, the sweep is told so at its start."""
    from tuning import rehearsal

    monkeypatch.setattr(rehearsal, "rehearse_report", lambda _: None)
    breaking(monkeypatch, page, "sweep.html", "{{ nothing_of_that_name }}")
    with pytest.raises(UserError, match=r"the report, tried before the work .*nothing_of_that_name"):
        rehearsal.rehearse_sweep(*sweep.load(["demo", f"output_dir={tmp_path}"]))
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("mlartifacts", ".corpora")] == []
