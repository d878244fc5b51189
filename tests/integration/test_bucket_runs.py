"""Results in a bucket of a real S3 server: runs trained, stopped, killed and resumed, evaluated, compared, swept.

Driver and workers share no folder: these have the cache of the tests' Ray, the driver one of its own.
"""

import json
import shutil
import signal
from pathlib import Path

import commands
import mlflow
import pytest
import torch
import yaml
from buckets import SECRET
from safetensors.torch import load
from tinyrun import config, settings, workers_started
from tinysweep import write_adapted_and_tasks, write_base, write_space

from lingu_ray import evaluate, export, inspect, storage, train
from lingu_ray.config import Config
from lingu_ray.errors import UserError
from lingu_ray.runtime import trainer
from tuning import compare, sweep

pytestmark = pytest.mark.slow

KNOWN = ("step", "loss", "ce", "kd", "grad_norm", "validation_ce")
ALIGN = {"epochs": 1}
TRAIN = {"steps": 48, "checkpoint_every": 8, "validate_every": 24, "sample_every": 24}


@pytest.fixture(scope="module")
def local(ray_cluster, data, tmp_path_factory) -> Config:
    """The undisturbed run in a folder, by two workers."""
    run = config(data, tmp_path_factory.mktemp("runs"), ray={"num_workers": 2}, train=TRAIN, align=ALIGN)
    trainer.run(run)
    return run


def tracking(tmp_path: Path) -> dict[str, str]:
    """MLflow's database on a disk."""
    return {"uri": f"sqlite:///{tmp_path}/mlflow.db"}


def in_bucket(data: Path, bucket: str, tmp_path: Path, name: str = "tiny") -> Path:
    """The same run with its results in the bucket, as a settings file."""
    tree = settings(
        data, bucket, name=name, ray={"num_workers": 2}, train=TRAIN, align=ALIGN, tracking=tracking(tmp_path)
    )
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def read(place: str) -> bytes:
    """The content of an object, or a file."""
    return storage.read_bytes(place) if storage.is_remote(place) else Path(place).read_bytes()


def records(place: str) -> list[dict]:
    """The lines of an object, or a file; none where there is no such object."""
    try:
        return [json.loads(line) for line in read(place).decode().splitlines()]
    except FileNotFoundError:
        return []


def outcome(run: str):
    """The exported weights, and what is known of each step, but how long it took."""
    steps = [tuple(record.get(key) for key in KNOWN) for record in records(f"{run}/metrics.jsonl")]
    return load(read(f"{run}/export/model.safetensors")), steps, records(f"{run}/samples.jsonl")


def assert_same_run(ours: str, theirs: str) -> None:
    """Same weights to the bit, same metrics, same answers."""
    (weights, *others), (expected, *known) = outcome(ours), outcome(theirs)
    assert others == known and all(torch.equal(weights[name], expected[name]) for name in expected)


def names(location: str) -> set[str]:
    """What is at a location."""
    return {entry.name for entry in storage.entries(location)}


def test_a_run_in_a_bucket_is_the_local_one(bucket, data, tmp_path, local, capsys):
    """It leaves there what the local run leaves in its folder, to the bit; MLflow has it; no secret is anywhere."""
    train.main([str(in_bucket(data, bucket, tmp_path))])
    train.show(local, local.run_dir / "export", None)
    run = f"{bucket}/tiny"
    assert_same_run(run, str(local.run_dir))
    files = {str(path.relative_to(local.run_dir)) for path in local.run_dir.rglob("*") if path.is_file()}
    assert names(run) == {name for name in files if not name.startswith(".ray/")}
    printed = capsys.readouterr().out
    assert f"report   {run}/report/report.html\nmodel    {run}/export\n" in printed
    assert f"out={run}/evaluation" in printed and f"distilled={run}/export" in printed
    texts = [read(f"{run}/{name}") for name in names(run) if not name.endswith((".safetensors", ".pt"))]
    assert not any(SECRET.encode() in text for text in [*texts, printed.encode()])
    pointer = json.loads(read(f"{run}/mlflow.json"))
    tracked = mlflow.MlflowClient(pointer["uri"]).get_run(pointer["run_id"])
    assert tracked.info.status == "FINISHED" and tracked.data.params["output_dir"] == bucket
    history = mlflow.MlflowClient(pointer["uri"]).get_metric_history(pointer["run_id"], "loss")
    assert [metric.step for metric in history] == list(range(1, 49))
    assert records(f"{run}/logs/rank-0.jsonl")[0]["run_id"] == pointer["run_id"]

    assert export.export(run) == f"{run}/export-step-48"  # a checkpoint in the bucket, by one process
    assert read(f"{run}/export-step-48/model.safetensors") == read(f"{run}/export/model.safetensors")
    before, started = storage.version(f"{run}/export/model.safetensors"), workers_started()
    train.main([str(tmp_path / "tiny.yaml")])  # found again
    assert (storage.version(f"{run}/export/model.safetensors"), workers_started()) == (before, started)
    with pytest.raises(UserError, match=rf"{run} was started with other settings(?s:.*)temperature"):
        train.main([str(tmp_path / "tiny.yaml"), "distill.temperature=2"])

    compare.main([run, str(local.run_dir), f"out={tmp_path}"])
    printed = capsys.readouterr().out
    assert run in printed and "seed" not in printed


def start(path: Path, node: Path) -> commands.Command:
    """The run as a command with a Ray of its own, whose processes keep their folders in `node`."""
    return commands.start_warm("lingu_ray.train", path, env={storage.CACHE: str(node)})


def states(run: str) -> list[str]:
    """The checkpoints that have their marker, oldest first."""
    return sorted(name.removesuffix("/state.json") for name in names(run) if name.endswith("/state.json"))


def test_killed_and_resumed_elsewhere(bucket, data, tmp_path, local, warm_workers, caplog):
    """SIGKILL of everything, with all local folders deleted, loses the steps since the newest checkpoint. Without its
    marker, as where its upload is cut off, the one before is resumed from, with a warning; the end is the same."""
    path, run = in_bucket(data, bucket, tmp_path), f"{bucket}/tiny"
    with start(path, tmp_path / "node") as command:
        command.wait_for(lambda: "checkpoints/step-00000016/state.json" in names(run))
        command.kill()
    shutil.rmtree(tmp_path / "node")
    assert not any(name.startswith("export") for name in names(run))
    newest = states(run)[-1]
    storage.delete(f"{run}/{newest}/state.json")
    train.main([str(path)])
    assert f"{run}/{newest}: its upload was cut off; it is not resumed from" in caplog.text
    assert_same_run(run, str(local.run_dir))


@pytest.mark.long
def test_stopped_and_resumed(bucket, data, tmp_path, local, warm_workers):
    """Ctrl-C saves the step into the bucket and says where; the same command resumes from there, to the same end."""
    path, run = in_bucket(data, bucket, tmp_path), f"{bucket}/tiny"
    with start(path, tmp_path / "node") as command:
        command.wait_for(lambda: records(f"{run}/metrics.jsonl"))
        command.signal_group(signal.SIGINT)
        printed = command.finish(130)
    assert f"run the same command again to resume ({run})" in printed and SECRET not in printed
    stopped = json.loads(read(f"{run}/{states(run)[-1]}/state.json"))["step"]
    assert stopped == records(f"{run}/metrics.jsonl")[-1]["step"] < TRAIN["steps"]
    with start(path, tmp_path / "another") as command:
        command.finish()
    assert_same_run(run, str(local.run_dir))


@pytest.fixture(scope="module")
def tasks(data):
    """The tiny pair with an adapted student and tasks."""
    write_adapted_and_tasks(data)
    return data


def test_an_evaluation_in_a_bucket(bucket, tasks, tmp_path, ray_cluster, capsys):
    """Models and results there: measured, reported and tracked; the same command measures nothing again."""
    for name in ("teacher", "adapted"):
        storage.put_tree(tasks / name, f"{bucket}/{name}", "config.json")
    tree = yaml.safe_load(write_base(tmp_path / "base.yaml", tasks, tmp_path).read_text())["evaluation"]
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(tree))
    out, models = f"{bucket}/scores", [f"teacher={bucket}/teacher", f"adapted={bucket}/adapted"]
    words = [*models, f"tasks={tmp_path}/tasks.yaml", f"out={out}", "tracking.system_metrics=false"]
    with pytest.raises(UserError, match=rf"tracking\.uri is needed, for results go to {out}"):
        evaluate.main(words)
    evaluate.main([*words, f"tracking.uri={tracking(tmp_path)['uri']}"])
    assert f"report   {out}/report.html" in capsys.readouterr().out
    items = {f"items/{task}.{model}.parquet" for task, model in (("choices", "teacher"), ("choices", "adapted"))}
    assert names(out) >= {*items, "items/questions.adapted.parquet", "report.html", "recovery.json", "mlflow.json"}
    before = {name: storage.version(f"{out}/{name}") for name in names(out) if name.startswith("items/")}
    scores = json.loads(read(f"{out}/recovery.json"))
    evaluate.main([*words, f"tracking.uri={tracking(tmp_path)['uri']}"])
    assert before == {name: storage.version(f"{out}/{name}") for name in before}
    evaluate.main([*words[2:], f"tracking.uri={tracking(tmp_path)['uri']}"])  # without a model, of the items alone
    assert json.loads(read(f"{out}/recovery.json")) == scores


@pytest.mark.long
def test_a_sweep_in_a_bucket(bucket, tasks, tmp_path, ray_cluster, capsys):
    """Two trials are trained, measured and ranked; only the better model is kept; found again by who has no folder of
    before, and nothing is trained again."""
    short = {"steps": 2, "validate_every": 2, "sample_every": 0, "checkpoint_every": 2}
    base = write_base(tmp_path / "base.yaml", tasks, bucket, train=short, tracking=tracking(tmp_path))
    space = write_space(tmp_path / "space.yaml", base, search={"distill.w_kd": {"grid": [0.5, 1]}})
    sweep.main([str(space)])
    root = f"{bucket}/sweep"
    there = names(root)
    assert there >= {"space.yaml", "report/sweep.html", "report/table.csv", "mlflow.json", "baseline/models.json"}
    outcomes = [json.loads(read(f"{root}/{name}")) for name in there if name.endswith("/trial.json")]
    assert [one["state"] for one in outcomes] == ["finished"] * 2 and all(one["scores"] for one in outcomes)
    assert len([name for name in there if name.endswith("/export/model.safetensors")]) == 1
    assert not [name for name in there if name.startswith("trials/") and "/checkpoints/" in name]
    started = workers_started()
    sweep.main([str(space)])
    assert workers_started() == started and names(root) >= there


def test_what_cannot_go_to_a_bucket_is_told_at_the_start(bucket, data, tmp_path):
    """No store for MLflow, the demo, a population: each with its cure, before anything starts. Inspect's page goes."""
    tree = settings(data, bucket)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match=rf"tracking\.uri is needed, for results go to {bucket}, .*MLFLOW_TRACKING_URI"):
        train.main([str(tmp_path / "run.yaml")])
    with pytest.raises(UserError, match=rf"output_dir={bucket}: the demo makes .* give output_dir a folder"):
        train.main(["demo", f"output_dir={bucket}"])
    pbt = {"search": {"distill.w_kd": {"choice": [1, 2]}}, "pbt": {"interval": 2}}
    with pytest.raises(UserError, match=rf"output_dir={bucket}: pbt copies checkpoints"):
        sweep.main([str(write_space(tmp_path / "space.yaml", tmp_path / "run.yaml", **pbt))])
    assert not names(bucket)
    inspect.main([str(tmp_path / "run.yaml"), "rows=1", "read=10"])
    assert names(bucket) == {"inspect/tiny.html"}
