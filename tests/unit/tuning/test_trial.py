"""What a trial writes of its own end, without Ray: whether the scheduler stopped it for good, or the user for now; and
what it makes of a folder that a kill has left."""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining
from tinyrun import config

from lingu_ray.atomic import read_json, write_json
from lingu_ray.config.command_line import load_yaml, to_yaml
from lingu_ray.errors import Interrupted, UserError
from lingu_ray.runtime.run import Run
from lingu_ray.runtime.run_folder.folder import RunFolder
from lingu_ray.runtime.run_folder.lease import Lease, lease_on
from lingu_ray.runtime.tracking.store_uri import environment, tracking_uri
from tuning.outcome import Outcome, read_outcome
from tuning.population import PopulationTrial
from tuning.search import scheduler
from tuning.space import Space
from tuning.trial import STOP, Sweep, Trial, trial_config

FIRST, SECOND = [0, {"distill.w_kd": 2}], [0.5, {"distill.w_kd": 1}]
"""What is drawn for the two intervals of a population's run of 8 steps."""
SCHEDULE = {"distill.w_kd": [[0, 2], [0.5, 1]]}


@pytest.fixture
def lease(tmp_path: Path) -> Iterator[Lease]:
    """The lease on the sweep's folder."""
    with lease_on(tmp_path) as held:
        yield held


@pytest.fixture
def trial(tmp_path: Path, lease: Lease) -> Any:
    """A running trial, whose sweep's trials lie in `tmp_path`."""
    made: Any = Trial.__new__(Trial)
    made.run, made.sweep, made.last_update = None, SimpleNamespace(trials=tmp_path, lease=lease), time.monotonic()
    made.folder, made.outcome = RunFolder(tmp_path / "trial-1"), Outcome("trial-1", {}, None, 0)
    return made


def test_a_trial_of_a_driver_that_was_taken_for_dead_writes_no_outcome(trial: Any, lease: Lease):
    """It was suspended, and the sweep is another driver's, which has finished the trial meanwhile."""
    finished = Outcome("trial-1", {}, None, 0, "finished", 8, 0.8)
    finished.write(trial.folder.root)
    write_json(Path(lease.path), read_json(Path(lease.path)) | {"owner": "another"})
    trial.user_error, trial.advance = None, lease.require  # as its workers, which read the lease before each step
    with pytest.raises(UserError, match="belongs to another driver now"):
        trial.step()
    assert read_outcome(trial.folder.root) == finished


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_trial_says_who_stopped_it(trial: Any, tmp_path: Path, by_hand: bool):
    """Where the sweep was asked to stop the trial is resumed later; what the scheduler stops has ended."""
    if by_hand:
        (tmp_path / STOP).touch()
    trial.cleanup()
    written = read_outcome(tmp_path / "trial-1")
    assert written is not None and written.state == "stopped"
    assert (written.by_hand, written.has_ended) == (by_hand, not by_hand)


@pytest.mark.parametrize("kind", ["asha", "pbt"])
@pytest.mark.parametrize("validation", [float("nan"), float("inf")])
def test_a_validation_that_is_no_number_is_the_worst(trial: Any, sweep: Sweep, kind: str, validation: float):
    """Successive halving stops such a trial, and a population replaces it; the others are judged as without it."""
    early = {"asha": {"grace": 1}} if kind == "asha" else {"pbt": {"interval": 1}}
    given = sweep.space.model_dump(exclude_defaults=True, exclude={"pbt"}) | early
    trial.sweep, chosen = sweep, scheduler(Space.model_validate(given), sweep.base)
    tuning: Any = SimpleNamespace(search_alg=None)
    trials = [TuneTrial("x", stub=True, config={"distill.w_kd": 0}) for _ in range(6)]
    verdicts: dict[float, str] = {}
    for one, ce in zip(trials, (1.0, 1.1, 1.2, validation, 1.3, 0.9), strict=True):
        chosen.on_trial_add(tuning, one)
        trial.outcome = Outcome("trial-1", {}, None, 0, step=2, validation_ce=ce)
        told = trial.result(done=False)
        if isinstance(chosen, ASHAScheduler):
            verdicts[ce] = chosen.on_trial_result(tuning, one, told)
        elif isinstance(chosen, PopulationBasedTraining):
            chosen._save_trial_state(chosen._trial_state[one], 2, told, one)
    if isinstance(chosen, PopulationBasedTraining):
        worst, best = chosen._quantiles()
        assert trials[3] in worst and trials[5] in best
    else:
        assert verdicts[validation] == "STOP" and verdicts[0.9] == verdicts[1.0] == "CONTINUE"


def test_a_run_that_was_interrupted_is_resumed(trial: Any, tmp_path: Path):
    """Its workers saved and ended before training did."""

    def end() -> None:
        raise Interrupted("stopped and saved")

    with pytest.raises(Interrupted):
        trial.end(SimpleNamespace(end=end))
    written = read_outcome(tmp_path / "trial-1")
    assert written is not None and written.by_hand and not written.has_ended


@pytest.fixture
def sweep(data: Path, tmp_path: Path, lease: Lease) -> Sweep:
    """A sweep of a population, whose trials lie in `tmp_path`."""
    search = {"distill.w_kd": {"choice": [1, 2]}}
    space = Space.model_validate({"name": "s", "base": "tiny", "search": search, "pbt": {"interval": 4}})
    base = config(data, tmp_path / "runs")
    return Sweep(space, base, tmp_path, tmp_path, 1, tmp_path, lease, tmp_path, environment())


def test_who_may_write_to_the_store_stands_in_no_file(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    """The variables of MLflow where the sweep was started reach its trials, wherever they run, and no file."""
    store = "http://me:secret@host"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hidden")
    sweep: Sweep = request.getfixturevalue("sweep")
    settings = trial_config(sweep, "trial-1", {}, 0)
    assert tracking_uri(settings) == store and "secret" not in to_yaml(settings)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name)
    of_trial = population_trial(sweep)
    assert os.environ["MLFLOW_TRACKING_TOKEN"] == "hidden"
    assert tracking_uri(trial_config(of_trial.sweep, "trial-1", {}, 0)) == store


def test_the_database_of_the_environment_is_the_same_one_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A relative path is of the folder that the sweep was started in, not of a trial's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")
    assert environment()["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/mine.db"


def population_trial(sweep: Sweep) -> Any:
    """Its trial, set up as by Tune with what was drawn for the second interval; it is measured by a word alone."""

    class Measured(PopulationTrial):
        trial_id = "run_1"

        def finish(self, run: Any) -> dict[str, Any]:
            return self.result(done=True) | {"measured": run.folder.exported_step}

    made: Any = Measured.__new__(Measured)
    made.setup({"distill.w_kd": 0}, sweep=sweep)
    return made


def killed(sweep: Sweep, step: int, history: int) -> RunFolder:
    """The folder of a population's trial, trained for so many of its 8 steps, and killed; `history` knows fewer."""
    folder = RunFolder(sweep.trials / "trial-1")
    checkpoint = folder.checkpoints / f"step-{step:08d}"
    checkpoint.mkdir(parents=True)
    write_json(checkpoint / "state.json", {"step": step, "validation_ce": None})
    validations = [{"step": done, "validation": {}, "validation_ce": done / 10} for done in range(4, step + 1, 4)]
    folder.metrics.write_text("".join(json.dumps(record) + "\n" for record in validations))
    folder.config.write_text(to_yaml(trial_config(sweep, "trial-1", SCHEDULE, 0)))
    write_json(folder.root / "history.json", {"step": history, "values": [FIRST, SECOND][: history // 4]})
    if step == 8:
        folder.export.mkdir()
        write_json(folder.exported, {"step": 8})
    return folder


@pytest.mark.parametrize("history", [4, 8])
def test_a_population_that_was_killed_at_its_end_is_measured_by_the_same_command(sweep: Sweep, history: int):
    """Whether or not its last interval was written down: its validation, which MLflow has already, is in the folder,
    and its settings are those it was trained with."""
    folder = killed(sweep, 8, history)
    told = population_trial(sweep).step()
    assert (told["done"], told["measured"], told["train_step"], told["validation_ce"]) == (True, 8, 8, 0.8)
    assert json.loads((folder.root / "history.json").read_text()) == {"step": 8, "values": [FIRST, SECOND]}
    assert [list(point) for point in load_yaml(folder.config).distill.w_kd.points] == SCHEDULE["distill.w_kd"]


def test_a_population_that_was_killed_resumes_where_tune_has_it(sweep: Sweep, tmp_path: Path):
    """Tune may know of fewer intervals than the folder: what came after goes, a finished model too."""
    copy = killed(sweep, 4, 4).root.rename(tmp_path / "copy")
    folder = killed(sweep, 8, 8)
    trial = population_trial(sweep)
    trial.load_checkpoint(str(copy))
    assert [step.name for step in folder.checkpoints.iterdir()] == ["step-00000004"]
    assert folder.exported_step is None and trial.history == {"step": 4, "values": [FIRST]}


@pytest.mark.parametrize("kind", [Trial, PopulationTrial])
def test_a_finished_trial_that_tune_does_not_know_of_is_not_trained_again(sweep: Sweep, kind: type[Trial]):
    """Killed before Tune noted its end, and its model removed since others are better: it answers from its outcome."""
    before = Outcome("trial-1", SCHEDULE, None, 0, "finished", 8, 0.8, recovery=0.5, retention=1.0)
    before.write(sweep.trials / "trial-1")
    RunFolder(sweep.trials / "trial-1").checkpoints.mkdir()
    trial: Any = kind.__new__(kind)
    trial._trial_info = SimpleNamespace(trial_id="run_1")
    trial.setup({"distill.w_kd": 0}, sweep=sweep)
    if kind is PopulationTrial:
        trial.load_checkpoint("of an interval")
    told = trial.step()
    assert (told["done"], told["train_step"], told["recovery"]) == (True, 8, 0.5)
    assert read_outcome(sweep.trials / "trial-1") == before and not trial.folder.checkpoints.exists()


def test_an_interval_that_was_interrupted_is_no_interval(sweep: Sweep):
    """Ctrl-C within it, after a validation or before: it is not written down, and is resumed."""
    folder = killed(sweep, 4, 4)
    trial = population_trial(sweep)

    def begin(values: dict[str, Any], until: int) -> Run:
        run: Any = Run(trial_config(sweep, "trial-1", values, 0), sweep.lease)
        run.until, run.thread, run.follow = until, threading.Thread(), list  # of workers that have ended
        run.progress = SimpleNamespace(close=lambda: None)
        run.tracker = SimpleNamespace(pause=lambda: None, end=lambda status: None)
        return run

    trial.begin = begin
    with pytest.raises(Interrupted):
        trial.step()
    assert json.loads((folder.root / "history.json").read_text())["step"] == 4
    written = read_outcome(folder.root)
    assert written is not None and written.by_hand and not written.has_ended
