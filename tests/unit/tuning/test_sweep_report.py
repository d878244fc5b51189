"""The sweep's report from made-up outcomes, and its run in a real MLflow store."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import mlflow
import pytest
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from lingu_ray.config import Config
from lingu_ray.config.command_line import load_config
from lingu_ray.errors import UserError
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.tracking.tracker import Tracker
from tuning.folder import TUNE_NAME, SweepFolder
from tuning.outcome import Outcome, read_outcomes
from tuning.report import check_trials, write_report
from tuning.space import Space
from tuning.tracking import SweepRun

SPACE = Space.model_validate({"name": "s", "base": "demo", "search": {"distill.w_kd": {"grid": [1, 2]}}})


@pytest.fixture(scope="module")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store that the tests of this file share."""
    return f"sqlite:///{shutil.copy(empty_store, tmp_path_factory.mktemp('store'))}"


@pytest.fixture
def base(store: str, tmp_path: Path) -> Config:
    """The recipe that the sweep starts from."""
    return load_config(["demo", f"output_dir={tmp_path}", f"tracking.uri={store}", "tracking.system_metrics=false"])


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """The sweep's folder."""
    return SweepFolder(tmp_path / "s")


def trial(w_kd: float, state: str = "finished", **rest: object) -> Outcome:
    """A trial's outcome."""
    return Outcome(f"trial-{w_kd}", {"distill.w_kd": w_kd}, None, 0, state, **rest)


def report(folder: SweepFolder, base: Config, *outcomes: Outcome, space: Space = SPACE) -> str:
    """The page that these outcomes give."""
    for outcome in outcomes:
        outcome.write(folder.trials / outcome.trial)
    with SweepRun(space, base, folder) as tracked:
        return write_report(space, base, folder, tracked).read_text()


def test_the_best_setting_is_a_recipe(folder: SweepFolder, base: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """Page, table and recipe name the best; how many trials failed is said, and in MLflow too."""
    good = trial(1, recovery=0.9, retention=1.0, scores={"cloze": 0.6})
    (model := folder.trials / good.trial / "export").mkdir(parents=True)
    page = report(folder, base, good, trial(2, "failed", error="the disk is full"))
    printed = capsys.readouterr().out
    assert "Best: w_kd=1 brings back 90.0%" in printed
    assert "failed   1 of 2 trials; the same command starts them again. trial-2: the disk is full" in printed
    assert "the disk is full" in page and 'class="ours"' in page
    assert f"best     python -m lingu_ray.train {folder.report / 'best.yaml'}\nmodel    {model}\n" in printed
    assert "<small>trial-1</small>" in page
    check_trials(folder)  # some are good
    pointer = json.loads((folder.root / "mlflow.json").read_text())
    run = mlflow.MlflowClient(pointer["uri"]).get_run(pointer["run_id"])
    best = {"best_recovery": 0.9, "best_retention": 1.0}
    others = {"trials_running": 0, "trials_stopped": 0}
    assert run.data.metrics == {"trials_finished": 1, "trials_failed": 1} | others | best
    report(folder, base, good, trial(2, recovery=0.8, retention=1.0, scores={"cloze": 0.5}))  # started again
    run = mlflow.MlflowClient(pointer["uri"]).get_run(pointer["run_id"])
    assert run.data.metrics == {"trials_finished": 2, "trials_failed": 0} | others | best


def test_the_headline_names_tasks_that_the_means_hide(
    folder: SweepFolder, base: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the best trial's verdict says of single tasks stands in the headline, printed and on the page."""
    said = "sentences: retention 95.0% [91.5, 99.3] is below 99%"
    page = report(folder, base, trial(1, recovery=0.9, retention=1.0, scores={"cloze": 0.6}, exceptions=[said]))
    printed = capsys.readouterr().out
    assert "Best, but not on every task: w_kd=1 brings back 90.0%" in printed
    assert f"of vision; {said}\n" in printed and said in page


def test_that_the_best_was_chosen(folder: SweepFolder, base: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """Terminal, page and recipe say that the scores that chose the best setting read too high for it."""
    tried = [trial(i, recovery=0.9 - i / 100, retention=1.0, scores={"cloze": 0.6}) for i in (1, 2)]
    page, said = report(folder, base, *tried), "Its scores chose it among 2, so they read too high"
    assert all(said in text for text in (page, capsys.readouterr().out, folder.recipe.read_text()))
    assert "Best of 2: " in page


def test_seeds_that_are_missing_are_told(folder: SweepFolder, base: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """A setting of whose seeds one is left says so in the table, in the headline and in the recipe."""
    space = SPACE.model_copy(update={"seeds": 3})
    page = report(
        folder, base, trial(1, recovery=0.9, retention=1.0, scores={"cloze": 0.6}), trial(2, "failed"), space=space
    )
    assert '<td class="number">1 of 3</td>' in page and '<td class="number">0 of 3</td>' in page
    assert "measured with all\n3 seeds come first" in page
    assert "keeps 100.0% of vision, on 1 of 3 seeds" in page and "on 1 of 3 seeds" in capsys.readouterr().out
    assert "; 1 of 3 seeds)" in folder.recipe.read_text()


@pytest.mark.slow
def test_figures_suit_a_dark_page(folder: SweepFolder, base: Config) -> None:
    """Every figure stands in the page in the page's own colors, with what it shows in words, and beside it as PNG."""
    tried = [(temperature, w_kd) for temperature in (1, 2, 4) for w_kd in (0.5, 1, 2)]
    outcomes = [
        Outcome(f"trial-{i}", {"distill.temperature": t, "distill.w_kd": w}, None, 0, "finished",
                recovery=0.5 + 0.05 * t - 0.1 * w, retention=1.01 - 0.01 * w, scores={"cloze": 0.5})
        for i, (t, w) in enumerate(tried)
    ]  # fmt: skip
    run = RunFolder(folder.trials / "trial-0")
    run.root.mkdir(parents=True)
    run.metrics.write_text("".join(json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in (1, 2, 3)))
    page = report(folder, base, *outcomes)
    assert page.count("<svg") == 6 and "<img" not in page and "var(--ink)" in page
    assert 'aria-label="Recovery over temperature and w_kd"' in page and "Bars: standard deviation over seeds" in page
    pictures = {path.stem for path in folder.report.glob("*.png")}
    assert pictures == {"pareto", "curves", "heat", "parallel", "importance"}


def test_no_column_of_a_page_is_wider_than_a_phone() -> None:
    """No style asks for columns of more than 20rem, unless they shrink with the page."""
    root = Path(__file__).parents[3]
    styles = [*root.glob("*/templates/*"), *root.glob("lingu_ray/*/templates/*")]
    columns = [found for path in styles for found in re.findall(r"minmax\(([\d.]+)rem", path.read_text("utf-8"))]
    assert columns and all(float(column) <= 20 for column in columns)


def test_measured_trials_without_recovery_are_shown(
    folder: SweepFolder, base: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table has their scores, by validation; page and terminal say why none is the best, and none is marked."""
    why = {"recovery": "cloze: no loss to recover beyond noise"}
    rest = {"retention": 1.0, "reasons": why}
    folder.report.mkdir(parents=True)
    (folder.report / "best.yaml").write_text("of an earlier report")
    page = report(
        folder,
        base,
        trial(1, validation_ce=2.0, scores={"cloze": 0.625}, **rest),
        trial(2, validation_ce=1.5, scores={"cloze": 0.5}, **rest),
    )
    printed = capsys.readouterr().out
    for text in (page, printed):
        assert "No best setting" in text and "recovery has no value (cloze: no loss to recover beyond noise)" in text
    assert "best     none" in printed and not (folder.report / "best.yaml").exists()
    assert page.index("50.0%") < page.index("62.5%") and 'class="ours"' not in page
    assert "ranked by validation" in page


def test_a_sweep_whose_trials_all_failed_is_an_error(
    folder: SweepFolder, base: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """One message: how many, the first reason, where its traceback lies, and what to do."""
    page = report(folder, base, *(trial(w, "failed", error=f"error {w}") for w in (1, 2)))
    assert "every trial failed, the first with: error 1" in page and "error 1" not in capsys.readouterr().out
    first = r"all 2 trials of s failed, the first \(trial-1\) with: error 1\nLook at "
    with pytest.raises(UserError, match=first + rf"{folder.trials}/trial-1\n"):
        check_trials(folder)
    written = folder.tune / TUNE_NAME / "trial-1" / "error.txt"  # Tune writes one where the trial itself raised
    written.parent.mkdir(parents=True)
    written.touch()
    with pytest.raises(UserError, match=first + rf"{written}\n"):
        check_trials(folder)


def test_a_store_that_is_gone_takes_nothing_of_a_sweep(
    folder: SweepFolder, base: Config, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Its server died as the trials ran: the result is printed, the report is whole, and a line says what to do."""
    trial(1, recovery=0.9, retention=1.0, run_id="0" * 32).write(folder.trials / "trial-1")
    with SweepRun(SPACE, base, folder) as tracked:
        tracked.client = mlflow.MlflowClient("http://127.0.0.1:9")  # where nobody listens
        tracked.end_children(read_outcomes(folder.trials))
        write_report(SPACE, base, folder, tracked)
    assert "Best: w_kd=1 brings back 90.0%" in capsys.readouterr().out and folder.recipe.exists()
    told = [message for message in caplog.messages if message.startswith(f"MLflow does not have all of {folder.root}")]
    assert told and not tracked.reached


def test_trials_go_over_to_a_new_run(folder: SweepFolder, base: Config) -> None:
    """Where the sweep's MLflow run was deleted another is started, and the trials' runs are its children and ended."""
    name = "trial-1"
    config = base.model_copy(
        update={
            "name": name,
            "output_dir": folder.trials,
            "tracking": base.tracking.model_copy(update={"parent": folder.root}),
        }
    )
    first = SweepRun(SPACE, base, folder)
    outcome = trial(1, "failed", run_id=Tracker(config, RunFolder(config.run_dir)).run_id)
    lost = trial(2, run_id="0" * 32)  # of a store that was emptied since
    first.client.delete_run(first.run_id)
    with SweepRun(SPACE, base, folder) as second:
        second.end_children([outcome, lost])
    run = second.client.get_run(outcome.run_id)
    assert second.run_id != first.run_id and run.data.tags[MLFLOW_PARENT_RUN_ID] == second.run_id
    assert run.info.status == "FAILED" and run.data.tags["state"] == "failed"
    assert read_outcomes(folder.trials) == []
