"""Real sweeps on a real Ray: trials with teacher actors, shared work, scheduler, search, MLflow, report."""

import csv
import json

import mlflow
import pytest
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from tinyrun import workers_started
from tinysweep import write_adapted_and_tasks, write_base, write_space

from lingu_ray.config.command_line import load_yaml
from lingu_ray.errors import UserError
from lingu_ray.runtime.tracking.command import COMMAND, command_line
from lingu_ray.runtime.tracking.environment import PRECISION, read_environment
from tuning import compare, sweep
from tuning.folder import SweepFolder
from tuning.outcome import read_outcomes

pytestmark = pytest.mark.slow
TOKEN = "only-who-has-this-may-write"


@pytest.fixture(scope="module")
def tasks(data):
    """The tiny pair with an adapted student and tasks."""
    write_adapted_and_tasks(data)
    return data


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Where all sweeps of this file lie."""
    return tmp_path_factory.mktemp("sweeps")


def run(tasks, output, name, train=None, **keys) -> SweepFolder:
    """Run a tiny sweep; its folder."""
    base = write_base(output / f"{name}-base.yaml", tasks, output, train=train or {"sample_every": 0})
    space = write_space(output / f"{name}.yaml", base, name=name, **keys)
    sweep.main([str(space)])
    return SweepFolder(output / name)


def children(folder: SweepFolder) -> list:
    """The sweep's runs in MLflow: children of its parent."""
    pointer = json.loads((folder.root / "mlflow.json").read_text())
    client = mlflow.MlflowClient(pointer["uri"])
    parent = client.get_run(pointer["run_id"])
    assert parent.info.status == "FINISHED"
    runs = client.search_runs([parent.info.experiment_id], f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{pointer['run_id']}'")
    assert {artifact.path for artifact in client.list_artifacts(pointer["run_id"])} >= {"sweep.html", "table.csv"}
    return runs


@pytest.fixture(scope="module")
def finished(ray_cluster, tasks, output) -> SweepFolder:
    """Two good cases, and one whose learning rate breaks the training; workers of a whole CPU of two."""
    broken = {"train.learning_rates.decoder": 1e30}
    cases = {"much": {"distill.w_kd": 1}, "little": {"distill.w_kd": 0.5}, "broken": broken}
    before, train = workers_started(), {"sample_every": 0, "precision": "auto"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
        settings = {"ray.cpus_per_worker": 1}
        folder = run(tasks, output, "cases", train, search={}, cases=cases, retries=1, settings=settings)
    assert workers_started() == before + len(cases)  # what only the user can fix is not tried again
    return folder


def test_who_may_write_to_mlflow_stands_in_no_file(finished):
    """Trials have it where they run; neither their folders nor what Tune keeps of the sweep do."""
    files = [path for path in finished.root.rglob("*") if path.is_file()]
    assert len(files) > 50 and not [path for path in files if TOKEN.encode() in path.read_bytes()]


def test_trials_end_and_failures_are_marked(finished):
    """Good trials are measured; a broken one is marked with its reason, not tried again, and sinks nothing.

    All have the precision that was chosen once for the sweep.
    """
    outcomes = {outcome.case: outcome for outcome in read_outcomes(finished.trials)}
    assert len(outcomes) == 3
    for good in (outcomes["much"], outcomes["little"]):
        assert good.state == "finished" and good.step == 8 and good.scores.keys() == {"choices", "questions"}
        assert good.recovery is not None and good.retention is not None and good.validation_ce is not None
    assert outcomes["broken"].state == "failed" and "gradient is not finite" in outcomes["broken"].error
    assert outcomes["much"].validation_ce != outcomes["little"].validation_ce
    [precision] = {load_yaml(trial / "config.yaml").train.precision for trial in finished.trials.iterdir()}
    assert read_environment(finished.root)[PRECISION].startswith(f"{precision}: ")


def test_mlflow_has_a_child_a_trial(finished):
    """One child each, ended as its trial was, with curves, parameters, tags and evaluation."""
    runs = {run.data.tags["trial"]: run for run in children(finished)}
    outcomes = read_outcomes(finished.trials)
    assert runs.keys() == {outcome.trial for outcome in outcomes}
    for outcome in outcomes:
        run = runs[outcome.trial]
        assert run.info.status == ("FINISHED" if outcome.state == "finished" else "FAILED")
        assert run.data.tags["state"] == outcome.state and run.data.tags["case"] == outcome.case
        assert run.data.params["distill.policy"] == "selective"
        assert run.data.tags[COMMAND] == command_line()  # the sweep's, not that of the trial's process
        if outcome.state == "finished":
            assert run.data.metrics["recovery"] == pytest.approx(outcome.recovery)
            assert run.data.metrics["eval/choices/score"] == pytest.approx(outcome.scores["choices"])
            assert run.data.metrics.keys() >= {"loss", "kd", "validation_ce"}


def test_report_table_and_recipe(finished):
    """The page has its figures within; the table has every trial; the best settings are a recipe; one model is kept."""
    page = (finished.report / "sweep.html").read_text()
    assert "<svg" in page and "<img" not in page and "gradient is not finite" in page and "brings back" in page
    rows = list(csv.DictReader((finished.report / "table.csv").open()))
    assert len(rows) == 3 and rows[0]["state"] == "finished"
    best = load_yaml(finished.report / "best.yaml")
    assert best.distill.w_kd.at(0) == {"much": 1, "little": 0.5}[rows[0]["case"]] and best.name == "cases-best"
    assert len(list(finished.trials.glob("*/export"))) == 1
    failed = {row["trial"] for row in rows if row["state"] == "failed"}  # these can be run again
    assert {path.parents[2].name for path in finished.trials.glob("*/checkpoints/*/optimizer*")} <= failed


def test_the_same_command_starts_only_failed_trials_again(finished, tasks, output):
    """Finished trials stay as they are, and the failed one is started once more, with what may change; the rest is
    refused.

    The sweep's MLflow run was deleted meanwhile: a new one has the trials as children.
    """
    good = [outcome.trial for outcome in read_outcomes(finished.trials) if outcome.state == "finished"]
    times = lambda: [(finished.trials / trial / "metrics.jsonl").stat().st_mtime_ns for trial in good]  # noqa: E731
    before = json.loads((finished.root / "mlflow.json").read_text())
    mlflow.MlflowClient(before["uri"]).delete_run(before["run_id"])
    written, workers = times(), workers_started()
    sweep.main([str(output / "cases.yaml"), "train.tokens_per_micro_batch=4095"])  # as after one that took too much
    assert len(good) == 2 and times() == written
    assert workers_started() == workers + 1
    (failed,) = [outcome for outcome in read_outcomes(finished.trials) if outcome.state == "failed"]
    assert failed.case == "broken"
    assert load_yaml(finished.trials / failed.trial / "config.yaml").train.tokens_per_micro_batch == 4095
    assert json.loads((finished.root / "mlflow.json").read_text())["run_id"] != before["run_id"]
    assert {run.info.run_id for run in children(finished)} == {o.run_id for o in read_outcomes(finished.trials)}
    with pytest.raises(UserError, match="started with other settings"):
        sweep.main([str(output / "cases.yaml"), "train.steps=9"])


def test_compare_folders_and_experiment(finished, output, capsys):
    """Runs side by side: what differs is shown, from folders and from MLflow alike."""
    good = [str(finished.trials / o.trial) for o in read_outcomes(finished.trials) if o.state == "finished"]
    compare.main([*good, f"out={output / 'compared'}"])
    printed = capsys.readouterr().out
    assert "distill.w_kd" in printed and "recovery" in printed and "choices" in printed and "seed" not in printed
    page = (output / "compared" / "compare.html").read_text()
    assert "<svg" in page and "<img" not in page
    uri = json.loads((finished.root / "mlflow.json").read_text())["uri"]
    compare.main(["experiment=lingu_ray", f"uri={uri}", f"out={output / 'compared'}"])
    assert "train.learning_rates.decoder" in capsys.readouterr().out


def test_a_failed_sweep_is_finished_by_the_same_command(finished, tasks, output):
    """Where all trials fail the command ends with the first reason and where to look, and page and MLflow say failed
    too. Once the cause is corrected, here a damaged corpus, the same command finishes the trial."""
    files = {path: path.read_bytes() for path in output.rglob("validation.parquet")}
    for path, content in files.items():
        path.write_bytes(content[:-20] + bytes(20))  # of the right size, so that it is found by reading
    with pytest.raises(UserError, match=r"the only trial of damaged failed.*is damaged; delete") as caught:
        run(tasks, output, "damaged", search={"distill.w_kd": {"grid": [1]}}, settings={"ray.max_failures": 0})
    folder = SweepFolder(output / "damaged")
    (failed,) = read_outcomes(folder.trials)
    place = folder.traceback(failed.trial)
    assert str(place) in str(caught.value) and "is damaged" in place.read_text()
    assert "every trial failed" in (folder.report / "sweep.html").read_text()
    pointer = json.loads((folder.root / "mlflow.json").read_text())
    assert mlflow.MlflowClient(pointer["uri"]).get_run(pointer["run_id"]).info.status == "FAILED"

    for path, content in files.items():
        path.write_bytes(content)
    sweep.main([str(output / "damaged.yaml")])
    (outcome,) = read_outcomes(folder.trials)
    assert (outcome.trial, outcome.state, outcome.error) == (failed.trial, "finished", None)
    assert [run.info.status for run in children(folder)] == ["FINISHED"]


@pytest.mark.long
def test_asha_and_optuna(ray_cluster, tasks, output):
    """TPE for two objectives with early stopping: trials stopped on their way are ended, and hold and keep nothing."""
    folder = run(
        tasks,
        output,
        "asha",
        train={"validate_every": 2, "sample_every": 0},
        search={"train.learning_rates.decoder": {"loguniform": [1e-5, 1e-2]}, "distill.divergence": {"choice": ["tv"]}},
        algorithm="optuna",
        objectives=["recovery", "retention"],
        trials=4,
        concurrent=2,
        asha={"grace": 2, "reduction": 2},
    )
    outcomes = read_outcomes(folder.trials)
    states = {outcome.state for outcome in outcomes}
    assert len(outcomes) == 4 and states == {"finished", "stopped"}
    for outcome in outcomes:
        assert outcome.step == 8 if outcome.state == "finished" else 2 <= outcome.step < 8
        assert not (folder.trials / outcome.trial / "checkpoints").exists()
    assert {run.info.status for run in children(folder)} == {"FINISHED", "KILLED"}


@pytest.mark.long
def test_population_finds_a_schedule(ray_cluster, tasks, output):
    """PBT: the run follows the values of its intervals as a schedule, which the best recipe holds."""
    folder = run(
        tasks,
        output,
        "pbt",
        train={"sample_every": 0},
        search={"distill.w_kd": {"uniform": [0.5, 2]}, "distill.temperature": {"choice": [1, 2, 4]}},
        trials=2,
        pbt={"interval": 4, "quantile": 0.5},
    )
    outcomes = read_outcomes(folder.trials)
    assert [outcome.state for outcome in outcomes] == ["finished", "finished"]
    for outcome in outcomes:
        assert [begin for begin, _ in outcome.values["distill.w_kd"]] == [0, 0.5]
        config = load_yaml(folder.trials / outcome.trial / "config.yaml")
        assert [list(point) for point in config.distill.w_kd.points] == outcome.values["distill.w_kd"]
    first = [outcome.values["distill.w_kd"][0][1] for outcome in outcomes]
    assert first[0] == first[1]  # the worse one went on as a copy of the better one, with its past
    assert load_yaml(folder.report / "best.yaml").distill.w_kd.points
    steps = [json.loads(line)["step"] for line in (folder.trials / outcomes[0].trial / "metrics.jsonl").open()]
    assert sorted(set(steps)) == list(range(1, 9))
    assert not list(folder.tune.rglob("checkpoint_*"))  # from which trials resume as copies
