"""The embedded default, in miniature: the very command of `make demo`, with few steps."""

import json

import commands
import mlflow
import pytest
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_SOURCE_NAME

from lingu_ray.demo.chats import NEXT_WORDS
from lingu_ray.evaluation.item_files import read_items
from lingu_ray.evaluation.recovery_json import read_recovery
from lingu_ray.runtime.tracking.command import COMMAND

pytestmark = pytest.mark.slow

SHORT = [
    "demo.hidden_size=96", "demo.heads=3", "demo.layers=2", "demo.teacher_steps=150", "demo.adapt_steps=25",
    "demo.cloze_items=40", "demo.word_items=40", "demo.vision_items=40",
    "train.steps=20", "train.validate_every=0", "train.sample_every=20", "corpus.rows=400", "evaluation.bootstrap=100",
]  # fmt: skip


def demo(output, ray=None):
    """Run it; returns what it printed. Without the address of a Ray it starts one."""
    env = {"RAY_ADDRESS": ray} if ray else None
    return commands.run("lingu_ray.train", "demo", f"output_dir={output}", *SHORT, env=env, warm=True)


def tracked(output):
    """The runs in MLflow, by name."""
    client = mlflow.MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("lingu_ray").experiment_id])
    return {run.info.run_name: run for run in runs}


def test_whole_path_and_a_second_start_that_makes_nothing_twice(ray_cluster, tmp_path):
    """Teacher, adapted student, distilled model, controls, evaluation and report are made; the second time, found."""
    printed = demo(tmp_path)
    run = tmp_path / "demo"
    recovery = read_recovery(run / "report")
    assert recovery is not None
    assert set(recovery.tasks) == {"cloze", "perplexity", "next_word", "digits", "sentences"}
    assert set(recovery.tasks["cloze"].models) == {"teacher", "adapted", "plain_ce", "distilled"}
    assert recovery.verdict.text in printed
    control = run / "controls" / "plain_ce" / "export"
    assert "It is a control of demo" in (control / "README.md").read_text()
    assert (control / "model.safetensors").exists()
    page = (run / "report" / "report.html").read_text()
    assert recovery.verdict.headline in page and "<svg" in page and "data:image/jpeg;base64," in page
    assert "## Results" in (run / "export" / "README.md").read_text()

    runs = tracked(tmp_path)
    assert runs.keys() == {"demo: adapted", "demo", "demo/plain_ce"}
    assert runs["demo/plain_ce"].data.tags[MLFLOW_PARENT_RUN_ID] == runs["demo"].info.run_id
    for name, model in (("demo", "distilled"), ("demo/plain_ce", "plain_ce")):
        scores = {name: task.models[model].score.value for name, task in recovery.tasks.items()}
        metrics = runs[name].data.metrics
        assert {task: metrics[f"eval/{task}/score"] for task in scores} == pytest.approx(scores)
    for one in runs.values():
        assert one.info.status == "FINISHED"
        assert one.data.tags[MLFLOW_SOURCE_NAME] == "python -m lingu_ray.train"
        assert one.data.tags[COMMAND].startswith(f"python -m lingu_ray.train demo output_dir={tmp_path} demo.")

    made = [*tmp_path.glob(".demo/*/teacher/model.safetensors"), *tmp_path.rglob("export/model.safetensors"),
            *tmp_path.rglob("shard-*.parquet"), *(run / "report" / "items").iterdir()]  # fmt: skip
    before = {path: path.stat().st_mtime_ns for path in made}
    assert len(before) >= 6 + 18  # teacher; adapted, distilled, control; two corpora; five tasks on whom they suit
    assert recovery.verdict.text in demo(tmp_path, ray_cluster)
    assert {path: path.stat().st_mtime_ns for path in made} == before
    assert {one.info.run_id for one in tracked(tmp_path).values()} == {one.info.run_id for one in runs.values()}

    check_what_is_said(run)


def check_what_is_said(run):
    """Asked about text in its chat template, the distilled model opens no turn; asked for a word, it says one and ends.

    Newlines stand between turns alone: one in an answer is where the next turn begins. The adapted model names digits.
    """
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    said = [sample["answer"] for sample in samples if "<image>" not in sample["question"]]
    words = {model: read_items(run / "report", "next_word", model)["prediction"] for model in ("adapted", "distilled")}
    assert said
    assert not [one for one in said + words["distilled"] if any(mark in one for mark in ("\n", "User:", "Assistant:"))]
    assert set(words["distilled"]) <= set(NEXT_WORDS)
    assert not set(words["adapted"]) <= set(NEXT_WORDS)
