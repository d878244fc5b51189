"""A sweep that is interrupted, then killed, resumes: finished trials stay, no MLflow run is left as running."""

import json
import signal

import commands
import mlflow
import pytest
from tinysweep import write_adapted_and_tasks, write_base, write_space

from tuning import sweep
from tuning.outcome import read_outcomes

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1500)]


def statuses(output):
    """Status of every MLflow run, by name."""
    client = mlflow.MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("lingu_ray").experiment_id])
    return {run.info.run_name: run.info.status for run in runs}


@pytest.mark.long
def test_interrupted_then_killed_then_finished(ray_cluster, data, tmp_path, capsys):
    """Ctrl-C saves all trials and ends with 130; SIGKILL loses at most steps; a third start finishes the sweep."""
    write_adapted_and_tasks(data)
    train = {"steps": 60, "checkpoint_every": 10, "validate_every": 10, "sample_every": 0}
    base = write_base(tmp_path / "base.yaml", data, tmp_path, train=train)
    space = write_space(tmp_path / "space.yaml", base, concurrent=1, search={"distill.w_kd": {"grid": [1]}}, seeds=2)
    trials = tmp_path / "sweep" / "trials"
    outcomes = lambda: read_outcomes(trials)  # noqa: E731

    with commands.start_warm("tuning.sweep", space) as command:
        command.wait_for(lambda: any(o.state == "running" and o.step >= 10 for o in outcomes()))
        command.signal_group(signal.SIGINT)
        assert "run the same command again" in command.finish(130)
    (first,) = outcomes()
    assert first.state == "stopped" and first.step < 60
    assert statuses(tmp_path) == {"sweep": "KILLED", f"sweep/{first.trial}": "KILLED"}

    with commands.start_warm("tuning.sweep", space) as command:
        command.wait_for(lambda: any(o.state == "finished" for o in outcomes()) and len(outcomes()) == 2)
        command.wait_for(lambda: any(o.state == "running" and o.step >= 10 for o in outcomes()))
        command.kill()
    finished = next(o for o in outcomes() if o.state == "finished")
    before = (trials / finished.trial / "metrics.jsonl").stat().st_mtime_ns

    sweep.main([str(space)])  # on the tests' Ray
    printed = capsys.readouterr().out
    assert [(o.state, o.seed) for o in outcomes()] == [("finished", 0), ("finished", 1)]
    assert len({o.validation_ce for o in outcomes()}) == 2
    assert (trials / finished.trial / "metrics.jsonl").stat().st_mtime_ns == before
    for outcome in outcomes():
        lines = (trials / outcome.trial / "metrics.jsonl").read_text().splitlines()
        steps = [record["step"] for line in lines if "loss" in (record := json.loads(line))]
        assert steps == list(range(1, 61))
    assert set(statuses(tmp_path).values()) == {"FINISHED"} and "best" in printed
